"""`ray job submit --working-dir . -- python -m d1ray train ...` on a cluster of two nodes with a token."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from d1ray.run import checkpoint, checkpoint_tensors

STEPS, WAIT_S = 24, 240
SETTINGS = [
    f"rl.steps={STEPS}",
    "rl.checkpoint_every=1000",  # so that a stopped job leaves the only one
    "rl.validate_every=1000",
    "evaluation.examples=4",
    "cluster.generators=1",
    "cluster.generator_cpus=0.5",
    "cluster.scorer_cpus=0.5",
]
CHECKOUT = Path(__file__).parents[3]
PATIENT = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})


@pytest.fixture(scope="module")
def cluster(started_cluster: Callable[..., Any]) -> Any:
    """Two nodes: one alone has no room for a generator, a scorer and a learner."""
    cluster = started_cluster(PYTHONPATH="", RAY_metrics_report_interval_ms="1000")
    cluster.start("--num-cpus=1")
    cluster.start("--num-cpus=1")
    return cluster


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody has who cloned the repository, ran something in it, and changed its code."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("d1ray", "actors"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(CHECKOUT / name, folder / name)
    for name in (".venv", "runs"):
        (folder / name).mkdir()
        (folder / name / "large").write_bytes(os.urandom(1000))
    scorer = folder / "actors" / "scorer.py"
    marks = folder / ".git" / "marks"  # .git does not travel either
    marks.mkdir(parents=True)
    mark = f"Path({str(marks)!r}, str(os.getpid())).write_text(__file__)"
    scorer.write_text(f"{scorer.read_text()}\nimport os\nfrom pathlib import Path\n{mark}\n")
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def submitted(cluster: Any, working_dir: Path, name: str, settings: list[str]) -> subprocess.Popen[str]:
    submit = ["ray", "job", "submit", "--submission-id", name, "--runtime-env-json", PATIENT]
    return subprocess.Popen(
        [*submit, "--working-dir", ".", "--", "python", "-m", "d1ray", "train", "sudoku-tiny", *settings],
        cwd=working_dir,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def job(
    cluster: Any, working_dir: Path, small_run: Callable[..., list[str]], tmp_path_factory: Any
) -> dict[str, Any]:
    """A job that was stopped in the middle and submitted again."""
    run = tmp_path_factory.mktemp("shared") / "run"
    settings = small_run(run, *SETTINGS)
    first = submitted(cluster, working_dir, "first", settings)
    end = time.monotonic() + WAIT_S
    while len(rows(run)) < 4 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    stop = ["ray", "job", "stop", "first"]
    subprocess.run(stop, env=cluster.environment, check=True, timeout=WAIT_S, capture_output=True)
    stopped = {"said": first.communicate(timeout=WAIT_S)[0], "steps": len(rows(run)) - 1}
    newest = checkpoint.latest(run / "checkpoints" / "rl")
    assert newest is not None, stopped["said"]
    stopped["checkpoint"] = checkpoint.load_state(newest)["driver"]["step"]
    second = submitted(cluster, working_dir, "second", settings)
    said = second.communicate(timeout=WAIT_S)[0]
    return {"run": run, "stopped": stopped, "said": said, "status": second.returncode}


def status_of(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_nothing_is_submitted_or_read(cluster: Any) -> None:
    url, entrypoint = f"{cluster.dashboard}/api/jobs/", json.dumps({"entrypoint": "true"}).encode()
    right = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    for headers, expected in ((right, 200), ({}, 401), ({"Authorization": "Bearer guessed"}, 403)):
        assert status_of(urllib.request.Request(url, headers=headers)) == expected
    assert status_of(urllib.request.Request(url, data=entrypoint, method="POST")) == 401


@pytest.mark.timeout(3 * WAIT_S)
def test_a_stopped_job_checkpoints_and_the_same_submission_goes_on_from_there(job: dict[str, Any]) -> None:
    stopped = job["stopped"]
    assert "interrupted; everything so far is saved" in stopped["said"]
    assert 3 <= stopped["checkpoint"] == stopped["steps"] < STEPS
    assert job["status"] == 0, job["said"]
    assert f"diffu-GRPO: started, {STEPS} steps, resuming at step {stopped['checkpoint']}" in job["said"]
    assert [row["step"] for row in rows(job["run"])] == list(range(STEPS + 1))


@pytest.mark.timeout(3 * WAIT_S)
def test_a_job_s_log_shows_its_progress_and_its_table(job: dict[str, Any]) -> None:
    assert re.search(rf"diffu-GRPO: \d+/{STEPS} .*reward", job["stopped"]["said"])
    assert f"diffu-GRPO: done {STEPS}/{STEPS}" in job["said"]
    assert "Held-out puzzles: sudoku" in job["said"]


@pytest.mark.timeout(3 * WAIT_S)
def test_a_job_runs_the_code_of_its_working_dir_on_both_nodes(
    job: dict[str, Any], cluster: Any, working_dir: Path
) -> None:
    imported = [Path(mark.read_text()) for mark in (working_dir / ".git" / "marks").iterdir()]
    assert len(imported) >= 2  # the driver and a scorer
    assert all(path.is_relative_to(cluster.folder) for path in imported)
    sent = list(cluster.folder.glob("*/session_2*/runtime_resources/working_dir_files/*/d1ray"))
    assert len({path.relative_to(cluster.folder).parts[0] for path in sent}) == 2
    for package in sent:
        names = {path.name for path in package.parent.iterdir()} - {"__pycache__"}
        assert names == {"d1ray", "actors", "pyproject.toml", ".gitignore"}


@pytest.mark.timeout(3 * WAIT_S)
def test_a_stopped_and_continued_job_ends_in_the_bits_of_a_local_run(
    job: dict[str, Any], undisturbed: Callable[[int], dict[str, torch.Tensor]]
) -> None:
    local = undisturbed(STEPS)
    newest = checkpoint.latest(job["run"] / "checkpoints" / "rl")
    assert newest is not None
    remote = dict(checkpoint_tensors.read_model(newest))
    assert remote.keys() == local.keys()
    assert all(torch.equal(remote[name], local[name]) for name in local)


# Prometheus

MONITORING = CHECKOUT / "deploy" / "monitoring"
EVERYTHING = [  # that the board shows
    "sft={steps: 4, batch_size: 8, examples: 6, validate_every: 1, validation_examples: 8}",
    "rl.steps=8",
    "rl.staleness=1",
    "rl.mismatch.every=1",
    "evaluation.examples=4",
    "cluster.generators=1",
    "cluster.generator_cpus=0.5",
    "cluster.scorer_cpus=0.5",
    "cluster.sft_workers=1",
]


@pytest.fixture(scope="module")
def prometheus(cluster: Any, tmp_path_factory: Any, free_port: Callable[[], int]) -> Iterator[str]:
    """The address of a Prometheus that scrapes what Ray says is there, with our alerts."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    rules = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    nodes = str(cluster.folder / "0" / "prom_metrics_service_discovery.json")
    scrape = {"job_name": "ray", "file_sd_configs": [{"files": [nodes], "refresh_interval": "1s"}]}
    interval = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": interval, "rule_files": ["rules.yaml"], "scrape_configs": [scrape]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address={address}"], stdout=said, stderr=said
        )
    yield f"http://{address}"
    process.terminate()
    process.wait(timeout=60)


def asked(prometheus: str, path: str, **parameters: object) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{query}", timeout=60) as response:
        answer = json.load(response)
    assert answer["status"] == "success"
    return answer["data"]


@pytest.mark.timeout(3 * WAIT_S)
def test_prometheus_has_data_for_every_panel_and_evaluates_every_alert(
    prometheus: str,
    cluster: Any,
    working_dir: Path,
    small_run: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    began = time.time()
    watched = submitted(cluster, working_dir, "watched", small_run(tmp_path / "run", *EVERYTHING))
    said = watched.communicate(timeout=2 * WAIT_S)[0]
    assert watched.returncode == 0, said
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    queries = {target["expr"].replace("$run", ".*") for p in panels for target in p.get("targets", [])}
    period = {"start": began, "end": time.time(), "step": 1}
    assert len(queries) > 30
    empty = {
        query for query in queries if not asked(prometheus, "query_range", query=query, **period)["result"]
    }
    assert not empty
    (group,) = asked(prometheus, "rules")["groups"]
    written = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]["groups"][0]["rules"]
    health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in group["rules"]}
    assert health == {rule["alert"]: ("ok", None) for rule in written}
