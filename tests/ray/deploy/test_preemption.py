"""A run whose head pod has to go is stopped by the pod's preStop hook, and goes on on another cluster."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

REPOSITORY = Path(__file__).parents[3]
STEPS = 24

Wait = Callable[[Callable[[], bool], str], None]


@pytest.fixture
def job(kustomize: Callable[[Path], list[dict[str, Any]]]) -> dict[str, Any]:
    """The RayJob of the CPU demo."""
    objects = kustomize(REPOSITORY / "deploy" / "kuberay" / "overlays" / "cpu-demo")
    [job] = [item["spec"] for item in objects if item["kind"] == "RayJob"]
    return dict(job)


@contextmanager
def cluster(
    job: dict[str, Any], environment: dict[str, str], free_port: Callable[[], int], wait_until: Wait
) -> Iterator[tuple[str, dict[str, str]]]:
    """One node with the resources of all the job's groups; yields the dashboard's address and an environment
    for commands in the head's container."""
    dashboard, gcs = f"http://127.0.0.1:{(port := free_port())}", free_port()
    resources: dict[str, int] = {}
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        resources |= json.loads(group["rayStartParams"]["resources"].strip("'"))
    command = [
        *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"),
        *(f"--ray-client-server-port={free_port()}", "--num-cpus=4", "--object-store-memory=268435456"),
        f"--resources={json.dumps(resources)}",
    ]
    log = Path(environment["RAY_TMPDIR"]) / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            wait_until(lambda: head.poll() is not None or answers(f"{dashboard}/api/gcs_healthz"), "the head")
            assert head.poll() is None, log.read_text()
            yield (
                dashboard,
                environment
                | {"RAY_API_SERVER_ADDRESS": dashboard, "RAY_ADDRESS": f"127.0.0.1:{gcs}"}
                | {"RAY_JOB_STOP_WAIT_TIME_S": "200"},
            )
        finally:
            head.terminate()
            head.wait(timeout=60)


def answers(url: str) -> bool:
    """Whether a probe without a token gets "success"."""
    try:
        with urlopen(url, timeout=5) as answer:
            return "success" in answer.read().decode()
    except (URLError, TimeoutError):
        return False


@pytest.mark.timeout(900)
def test_a_drained_run_fails_its_job_and_goes_on_on_another_cluster(
    no_process_left_behind: None,
    job: dict[str, Any],
    environment: dict[str, str],
    free_port: Callable[[], int],
    small_run: Callable[..., list[str]],
    tmp_path: Path,
    wait_until: Wait,
    steps_of: Callable[[Path], list[int]],
    saved_step: Callable[[Path], int],
) -> None:
    run = tmp_path / "run"
    more = [
        f"rl.steps={STEPS}",
        "rl.prompts_per_step=2",
        f"rl.validate_every={STEPS}",
        "evaluation.examples=4",
    ]
    overrides = small_run(run, *more)
    entrypoint = f"{job['entrypoint']} {' '.join(overrides)}"  # later ones count

    def submit(address: str, environment: dict[str, str]) -> Callable[[], JobStatus]:
        """As KubeRay's submitter does: through a shell. Returns what asks for the job's status."""
        command = f"ray job submit --address {address} --no-wait --submission-id one -- {entrypoint}"
        subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=120, capture_output=True)
        client = JobSubmissionClient(address)
        return lambda: client.get_job_status("one")

    with cluster(job, environment, free_port, wait_until) as (address, inside):
        with pytest.raises(URLError, match="401"):  # the Jobs API asks for the token
            urlopen(f"{address}/api/jobs/", timeout=30)
        [healthcheck] = re.findall(
            r"HEALTHCHECK .* CMD (\[.*\])", (REPOSITORY / "docker/Dockerfile").read_text()
        )
        assert subprocess.run(json.loads(healthcheck), env=inside, timeout=60).returncode == 0
        status = submit(address, environment)
        wait_until(lambda: len(steps_of(run)) > 3 or status().is_terminal(), "the first steps")
        drained = subprocess.run(
            [sys.executable, REPOSITORY / "docker" / "drain.py"],
            env=inside,
            timeout=240,
            capture_output=True,
            text=True,
        )
        assert drained.returncode == 0, drained.stderr
        [ended] = [j for j in JobSubmissionClient(address).list_jobs() if j.submission_id == "one"]
        assert (ended.status, ended.driver_exit_code) == (JobStatus.FAILED, 143), ended.message
    assert subprocess.run(json.loads(healthcheck), env=inside, timeout=120, capture_output=True).returncode
    stopped = steps_of(run)[-1]
    assert 3 <= stopped < STEPS
    assert saved_step(run) == stopped

    with cluster(job, environment, free_port, wait_until) as (address, inside):
        status = submit(address, environment)
        wait_until(lambda: status().is_terminal(), "the end of the run")
        assert status() == JobStatus.SUCCEEDED
    assert steps_of(run) == list(range(STEPS + 1))
