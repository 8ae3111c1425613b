"""The Slurm script, with stand-ins for `srun` and `scontrol` that act here: two nodes on one host."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "slurm" / "train.sbatch"
STEPS = 24
STAND_INS = {
    "srun": """
        while [[ $1 == -* ]]; do shift; done
        exec "$@"
    """,
    "scontrol": """
        echo "$@" >>"$SCONTROL_LOG"
    """,
}


@pytest.fixture
def slurm(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script of two nodes with two CPUs each."""
    for name, body in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{body}")
        program.chmod(0o755)
    return environment | {
        "PATH": f"{tmp_path}/bin:{environment['PATH']}",
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURMD_NODENAME": "node1",
    }


@pytest.mark.timeout(900)
def test_a_job_told_to_go_saves_is_queued_again_and_ends_where_it_would_have(
    no_process_left_behind: None,
    slurm: dict[str, str],
    small_run: Callable[..., list[str]],
    tmp_path: Path,
    wait_until: Callable[[Callable[[], bool], str], None],
    steps_of: Callable[[Path], list[int]],
    saved_step: Callable[[Path], int],
) -> None:
    run, log = tmp_path / "run", tmp_path / "job.log"
    # Both generators at once need both nodes.
    overrides = small_run(run, f"rl.steps={STEPS}", "rl.prompts_per_step=2", "cluster.generator_cpus=1.25")
    command = ["bash", SCRIPT, "sudoku-tiny", *overrides, "rl.validate_every=24", "evaluation.examples=4"]
    with log.open("w") as output:
        job = subprocess.Popen(command, env=slurm, stdout=output, stderr=output, start_new_session=True)
        try:
            wait_until(lambda: len(steps_of(run)) > 3 or job.poll() is not None, "the first steps")
            job.send_signal(signal.SIGTERM)  # to the batch script alone, as --signal=B: does
            assert job.wait(timeout=240) == 143, log.read_text()
        finally:
            job.kill()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"
    stopped = steps_of(run)[-1]
    assert 3 <= stopped < STEPS
    assert saved_step(run) == stopped

    again = subprocess.run(
        command, env=slurm, capture_output=True, text=True, timeout=400, start_new_session=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert steps_of(run) == list(range(STEPS + 1))
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"


def test_a_job_without_a_recipe_says_how_to_call_it(slurm: dict[str, str]) -> None:
    done = subprocess.run(["bash", SCRIPT], env=slurm, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "usage: sbatch train.sbatch RECIPE run_dir=DIR" in done.stderr
