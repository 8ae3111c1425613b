"""The memory of every kind of process stays flat over 300 steps, and the driver's at any size of model."""

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.models.make import make_model

STEPS, FIRST, WIDTH = 300, 100, 20  # compared: the means of WIDTH steps up to FIRST and up to STEPS
KINDS = ("driver", "Learner", "Generator", "Scorer")
MOST = {"driver": 4, "Learner": 4, "Generator": 4, "Scorer": 4, "object store": 1}  # MB of growth
SETTINGS = [
    f"rl.steps={STEPS}",
    "rl.staleness=1",
    "rl.mu=1",
    "rl.validate_every=100",
    "rl.checkpoint_every=50",
    "rl.keep_checkpoints=2",
    "cluster.generators=2",
]


def own_bytes(process: psutil.Process) -> int:
    """What belongs to it alone: what is shared with others is Ray's object store, and code."""
    return int(process.memory_full_info().uss)


def kind_of(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    return next((kind for kind in KINDS if title.startswith(f"ray::{kind}")), "")


def stored_bytes() -> float:
    name = "object_store_memory"
    return ray.cluster_resources()[name] - ray.available_resources().get(name, 0)


@contextmanager
def sampled(run: Path) -> Iterator[dict[str, dict[int, float]]]:
    """Bytes of each kind by the step at which they were seen; of several processes of a kind the sum."""
    samples: dict[str, dict[int, float]] = defaultdict(dict)
    over = threading.Event()

    def look() -> None:
        file = run / "metrics.jsonl"
        while not over.wait(0.1):
            step = len(file.read_text().splitlines()) - 1 if file.exists() else 0
            now: dict[str, float] = {"driver": own_bytes(psutil.Process()), "object store": stored_bytes()}
            for process in psutil.Process().children(recursive=True):
                try:
                    if kind := kind_of(process):
                        now[kind] = now.get(kind, 0) + own_bytes(process)
                except psutil.Error:  # it has just ended
                    continue
            for kind, amount in now.items():
                samples[kind][step] = amount

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield samples
    finally:
        over.set()
        looking.join()


@pytest.mark.timeout(3000)
def test_memory_stays_flat_over_300_steps(
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[..., object],
    tmp_path: Path,
) -> None:
    with sampled(tmp_path / "run") as samples:
        reinforced(config_of(tmp_path / "run", *SETTINGS))

    def mean(kind: str, until: int) -> float:
        seen = samples[kind]
        return statistics.mean(seen[step] for step in seen if until - WIDTH <= step < until) / 1e6

    grown, shown = {}, range(50, STEPS + 1, 50)
    print("\nMB until       " + "".join(f"step {step:<7}" for step in shown) + "growth, held to")
    for kind, most in MOST.items():
        grown[kind] = mean(kind, STEPS) - mean(kind, FIRST)
        row = "".join(f"{mean(kind, step):<12.1f}" for step in shown)
        print(f"{kind:<14}{row}{grown[kind]:.2f}, {most}")
    for kind, most in MOST.items():
        assert grown[kind] < most, kind


@pytest.mark.timeout(600)
def test_the_driver_does_not_grow_with_the_model(
    no_process_left_behind: None, small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    """`d1ray train` of a model of 1 MB and of one of 200 MB: the driver holds references."""
    peaks, sizes = {}, {}
    for name, width, mlp in (("small", 64, 384), ("large", 1024, 4096)):
        made = [f"model.make.d_model={width}", f"model.make.mlp_hidden_size={mlp}", "model.make.n_layers=3"]
        config = load_config("sudoku-tiny", made)
        assert config.model.make is not None
        make_model(config.model.make, 0, tmp_path / name)
        sizes[name] = (tmp_path / name / "model.safetensors").stat().st_size / 1e6
        run = ["rl.steps=3", "rl.validate_every=10", "cluster.generators=1", "evaluation.examples=4"]
        settings = [*small_run(tmp_path / f"run-{name}", *run), f"model.path={tmp_path / name}"]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-m", "d1ray", "train", "sudoku-tiny", *settings],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        peaks[name] = 0.0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # it has just ended
                peaks[name] = max(peaks[name], own_bytes(psutil.Process(process.pid)) / 1e6)
            time.sleep(0.05)
        assert process.returncode == 0
    for name in peaks:
        print(f"\nmodel of {sizes[name]:.0f} MB: the driver's peak is {peaks[name]:.0f} MB")
    assert peaks["large"] - peaks["small"] < 0.1 * (sizes["large"] - sizes["small"])
