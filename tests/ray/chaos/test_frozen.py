"""`d1ray sft` whose Bulletin hangs: the command ends within its deadline and says what hangs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

DEADLINE_S = 20  # three of them have to do for a start


def test_a_bulletin_that_hangs_is_named(
    no_process_left_behind: None,
    small_run: Callable[..., list[str]],
    processes: Callable[..., list[psutil.Process]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    section = "sft={steps: 100000, batch_size: 8, examples: 6}"
    settings = small_run(run, section, "cluster.sft_workers=1", f"cluster.deadline_s={DEADLINE_S}")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "d1ray", "sft", "sudoku-tiny", *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 180
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    (bulletin,) = processes("ray::Bulletin", process.pid)
    bulletin.suspend()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    (line,) = said.strip().splitlines()
    assert line.startswith("d1ray: error: sft, after step ") and "the Bulletin" in line
    assert f"did not answer for {DEADLINE_S} s (cluster.deadline_s)" in line
