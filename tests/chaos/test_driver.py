"""The driver is taken away: told to go, or killed with all it started. The same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d1ray import checkpoint


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.latest(run / "checkpoints" / "rl")
    assert newest is not None
    return load_file(newest / "model" / "model.safetensors")


def steps(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def signalled(command: list[str], environment: dict[str, str], run: Path, after: int, number: int) -> int:
    """The exit status of a command that gets a signal once step ``after`` is logged."""
    group = number == signal.SIGKILL  # nobody is left to end what the driver has started
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 180
    while after not in steps(run):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, number)
    return process.wait(timeout=60)


@pytest.mark.timeout(400)
def test_a_terminated_and_a_killed_driver_leave_a_run_that_ends_in_the_same_bits(
    no_process_left_behind: None, small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)

    def command(name: str) -> list[str]:
        settings = ["rl.steps=12", "rl.validate_every=4", "rl.checkpoint_every=3", "evaluation.examples=4"]
        run = small_run(tmp_path / name, *settings)
        return [sys.executable, "-m", "d1ray", "train", "sudoku-tiny", *run]

    run = tmp_path / "disturbed"
    assert signalled(command("disturbed"), environment, run, 2, signal.SIGTERM) == 143
    newest = checkpoint.latest(run / "checkpoints" / "rl")
    assert newest is not None and newest.name >= "step-00002"  # saved on the way out
    assert signalled(command("disturbed"), environment, run, 7, signal.SIGKILL) == -signal.SIGKILL
    for name in ("disturbed", "whole"):
        subprocess.run(command(name), env=environment, check=True, timeout=180)
    disturbed, whole = weights(run), weights(tmp_path / "whole")
    assert all(torch.equal(disturbed[name], whole[name]) for name in whole)
    assert steps(run) == steps(tmp_path / "whole") == list(range(13))
