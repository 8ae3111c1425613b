"""What a driver's files cost in 10^5 steps: as much a step as in a short run, and little at its end.

`pytest tests/benchmarks/test_long_runs.py -s` prints it. Sizes are compared with bounds; times only with
those of a run a tenth as long, with wide margins.
"""

import os
import resource
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from d1ray.config.recipe import load_config
from d1ray.report.report import report
from d1ray.run.curves import draw_curves
from d1ray.run.folder import RunFolder
from d1ray.run.history import History
from d1ray.run.sender import Sender

STEPS = int(os.environ.get("D1RAY_STEPS", "100_000"))
PHASES = ("load", "generate", "logprob", "score", "learn", "publish", "step")


def row_of(step: int) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": "rl", "step": step, "reward": step % 7 / 7, "kl": 1e-3, "loss": 0.1}
    row |= {"clip_fraction": 0.1, "solved": 0.5, "reward/cells": 0.5, "parse_failures": step % 2}
    row |= {f"seconds_{phase}": 1.0 for phase in PHASES}
    return row | ({"validation_solved": 0.5, "validation_examples": 64} if step % 20 == 0 else {})


class Broken:
    """A tracker that is never there."""

    def log(self, row: Mapping[str, Any], at: float) -> None:
        raise ConnectionError("no route")

    def close(self) -> None:
        pass


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def logged(folder: Path, steps: int) -> dict[str, float]:
    """Runs through the steps as the driver's loop does; seconds a step and memory, early and late."""
    config = load_config("sudoku-tiny", [f"run_dir={folder}", f"rl.steps={steps}"])
    part, seen = steps // 10, {}
    with RunFolder.open(folder, config) as run:
        tracker = Sender("it", Broken())
        run.listeners.append(tracker.put)
        for step in range(1, steps + 1):
            if step in (part, steps - part):
                began = time.thread_time()
            run.log(row_of(step))
            (run.rollouts / f"step-{step:05d}.parquet").touch()
            run.thin_rollouts(step, keep=2000)
            if step in (2 * part, steps):
                when = "late" if step == steps else "early"
                seen[f"{when} us/step"] = 1e6 * (time.thread_time() - began) / part
                seen[f"{when} MiB"] = resident_mib()
                seen[f"{when} files"] = psutil.Process().num_fds()
                seen[f"{when} threads"] = threading.active_count()
        seen["rollouts"] = len(list(run.rollouts.iterdir()))
    return seen


def ended(folder: Path) -> dict[str, float]:
    """What is made at the end of a run: CPU seconds and sizes."""
    began = time.thread_time()
    with RunFolder.open(folder, load_config("sudoku-tiny", [f"run_dir={folder}"])) as run:
        history = History(run.rows())
    read = time.thread_time()
    draw_curves(history, folder / "curves.png")
    drawn = time.thread_time()
    for file in (folder / "rollouts").iterdir():
        file.unlink()  # they were empty
    page = report([folder])
    made = time.thread_time()
    return {
        "read s": read - began,
        "curves s": drawn - read,
        "report s": made - drawn,
        "report KiB": page.stat().st_size / 1024,
        "bins": sum(len(series.bins) for series in history.series.values()),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@pytest.mark.timeout(3600)
def test_a_run_of_a_hundred_thousand_steps_costs_as_much_a_step_as_a_short_one(tmp_path: Path) -> None:
    found = {}
    for name, steps in (("a tenth", STEPS // 10), ("all", STEPS)):
        found[name] = logged(tmp_path / name, steps) | ended(tmp_path / name)
        print(f"\n{steps:,} steps: " + ", ".join(f"{key} {value:,.4g}" for key, value in found[name].items()))
    short, long = found["a tenth"], found["all"]
    assert long["late us/step"] < 3 * long["early us/step"]
    assert long["late files"] == long["early files"] and long["late threads"] == long["early threads"]
    assert long["rollouts"] <= 2000 + 2000 // 8
    assert long["curves s"] < 3 * short["curves s"]
    assert long["bins"] < 1.5 * short["bins"] and long["report KiB"] < 2 * short["report KiB"]
    assert long["read s"] < 3 * 10 * short["read s"]
