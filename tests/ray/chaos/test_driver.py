"""The driver is taken away: told to go, or killed with all it started. The same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from d1ray.config.run import Config
from d1ray.run import checkpoint


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.latest(run / "checkpoints" / "rl")
    assert newest is not None
    return load_file(newest / "model" / "model.safetensors")


def steps(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def signalled(
    command: list[str],
    environment: dict[str, str],
    run: Path,
    after: int,
    number: int,
    due: Callable[[int], object] = lambda pid: True,
) -> tuple[int, str]:
    """The exit status and the errors printed of a command that gets a signal once step ``after`` is logged
    and a signal is ``due``, as its process id tells."""
    group = number == signal.SIGKILL  # nobody is left to end what the driver has started
    with (run.parent / "errors.txt").open("w+") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True)
        deadline = time.monotonic() + 300
        while after not in steps(run) or not due(process.pid):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        (os.killpg if group else os.kill)(process.pid, number)
        status = process.wait(timeout=120)
        errors.seek(0)
        return status, errors.read()


@pytest.fixture
def environment(no_process_left_behind: None) -> dict[str, str]:
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)
    return environment


def same_weights(run: Path, expected: dict[str, torch.Tensor]) -> bool:
    these = weights(run)
    return all(torch.equal(these[name], tensor) for name, tensor in expected.items())


@pytest.mark.timeout(900)
def test_a_terminated_and_a_killed_driver_leave_a_run_that_ends_in_the_same_bits(
    environment: dict[str, str],
    small_run: Callable[..., list[str]],
    undisturbed: Callable[[int], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "disturbed"
    settings = ["rl.steps=12", "rl.validate_every=4", "rl.checkpoint_every=3", "evaluation.examples=4"]
    command = [sys.executable, "-m", "d1ray", "train", "sudoku-tiny", *small_run(run, *settings)]
    status, errors = signalled(command, environment, run, 2, signal.SIGTERM)
    assert (status, "everything so far is saved" in errors) == (143, True), errors
    newest = checkpoint.latest(run / "checkpoints" / "rl")
    assert newest is not None and newest.name >= "step-00002"  # saved on the way out
    status, _ = signalled(command, environment, run, 7, signal.SIGKILL)
    assert status == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert same_weights(run, undisturbed(12))
    assert steps(run) == list(range(13))


@pytest.mark.timeout(900)
def test_a_step_that_outlasts_the_grace_is_given_up_and_done_again_in_the_same_bits(
    environment: dict[str, str],
    small_run: Callable[..., list[str]],
    processes: Callable[..., list[psutil.Process]],
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[[Config], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "disturbed"
    settings = ["rl.steps=2", "rl.mu=20", "rl.optimizer.learning_rate=1e-5", "cluster.grace_s=0.02"]
    settings += ["evaluation.examples=4"]
    command = [sys.executable, "-m", "d1ray", "train", "sudoku-tiny", *small_run(run, *settings)]
    learning = partial(processes, "ray::Learner.learn")
    status, errors = signalled(command, environment, run, 1, signal.SIGTERM, learning)
    assert status == 143, errors
    done = steps(run)[-1]
    assert "given up, as it did not end within 0.01 s (half of cluster.grace_s)" in errors
    assert f"the run goes on from step {done}. Run the same command to continue." in errors
    assert checkpoint.newest_step(run / "checkpoints" / "rl") == done < 2
    subprocess.run(command, env=environment, check=True, timeout=300)
    whole = reinforced(config_of(tmp_path / "whole", *settings))
    assert same_weights(run, whole)
    assert steps(run) == steps(tmp_path / "whole") == [0, 1, 2]
