"""The `d1ray` command as a person uses it: interrupted, continued, evaluated, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from d1ray import cli
from d1ray.run import checkpoint

SmallRun = Callable[..., list[str]]
DEADLINE_S, STEPS = 240, 24


def steps_of(run: Path) -> list[int]:
    try:
        return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def run(no_process_left_behind: None, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted by Ctrl-C after its first steps and continued by the same command."""
    folder = tmp_path_factory.mktemp("command")
    command = [sys.executable, "-m", "d1ray", "train", "sudoku-tiny"]
    command += small_run(
        folder / "run", f"rl.steps={STEPS}", "rl.prompts_per_step=2", f"rl.validate_every={STEPS}"
    )
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        limit = time.monotonic() + DEADLINE_S
        while len(steps_of(folder / "run")) < 4 and first.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to every process of the command
        _, err = first.communicate(timeout=DEADLINE_S)
    finally:
        first.kill()
    assert first.returncode == 130, err
    assert "interrupted; everything so far is saved" in err
    stopped = steps_of(folder / "run")
    assert 4 <= len(stopped) <= STEPS
    newest = checkpoint.latest(folder / "run" / "checkpoints" / "rl")
    assert newest is not None and checkpoint.step_of(newest) == stopped[-1]
    second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert second.returncode == 0, second.stderr
    return folder / "run"


@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_run_interrupted_by_ctrl_c_continues_where_it_stopped(run: Path) -> None:
    assert steps_of(run) == list(range(STEPS + 1))


def d1ray(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["d1ray", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_evaluate_gives_the_accuracies_of_a_run_as_json(
    ray_cluster: None, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert d1ray(monkeypatch, "evaluate", run, "--task", "sudoku", "--examples", 16, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    recorded = {r["stage"]: r for r in json.loads((run / "summary.json").read_text())["rows"]}["rl"]
    for key in ("task", "n", "cell", "solved", "format", "ci95"):
        assert row[key] == recorded[key], key


def test_evaluate_reads_a_file_of_puzzles(
    ray_cluster: None,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    puzzles = [{"puzzle": "0321003004002100", "solution": "4321123434122143"}]
    pq.write_table(pa.Table.from_pylist(puzzles), tmp_path / "puzzles.parquet")
    status = d1ray(
        monkeypatch, "evaluate", run, "--task", "sudoku", "--data", tmp_path / "puzzles.parquet", "--json"
    )
    assert status == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1


def test_a_cluster_that_is_too_small_is_named_with_the_settings_that_ask(
    ray_cluster: None,
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = small_run(tmp_path / "run", "cluster.generators=100", "cluster.generator_cpus=1")
    assert d1ray(monkeypatch, "train", "sudoku-tiny", *overrides) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert "100 cluster.generators x 1" in line and "but the cluster has 4" in line
    assert "authentication" in shown.out and "stage rl needs 100" in " ".join(shown.out.split())
    assert not (tmp_path / "run").exists()


def test_a_learner_for_whom_others_leave_no_place_is_named_with_what_is_free(
    ray_cluster: None,
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Other:
        pass

    other = ray.remote(num_cpus=3.75)(Other).remote()
    ray.get(other.__ray_ready__.remote(), timeout=60)
    try:
        overrides = small_run(tmp_path / "run", "cluster.placement_s=1")
        assert d1ray(monkeypatch, "train", "sudoku-tiny", *overrides) == 2
    finally:
        ray.kill(other)
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert "no place for 1 x learner rank (cluster.learners) with {'CPU': 0.5} each within 1 s" in line
    assert "of 4 CPU" in " ".join(shown.out.split())


def test_a_folder_with_another_run_is_refused(
    ray_cluster: None,
    run: Path,
    small_run: SmallRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert d1ray(monkeypatch, "train", "sudoku-tiny", *small_run(run, "rl.algorithm.beta=0.1")) == 2
    assert "holds another run" in capsys.readouterr().err
