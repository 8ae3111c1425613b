"""Whatever is killed, a synchronous run ends with the same weights, bit for bit."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest
import torch

from d1ray.config.run import Config
from d1ray.run import checkpoint
from d1ray.run.interrupt import Interrupted

ConfigOf: TypeAlias = Callable[..., Config]
Processes: TypeAlias = Callable[..., list[psutil.Process]]
Weights: TypeAlias = dict[str, torch.Tensor]
Reinforced: TypeAlias = Callable[..., Weights]

TWO_RANKS = ["rl.steps=3", "cluster.learners=2", "cluster.learner_cpus=0.25", "rl.sharding=fsdp"]


def identical(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0  # step 0 is a line, too


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows[1:]]


@contextmanager
def killing(
    run: Path,
    titled: Callable[[], list[psutil.Process]],
    every: bool,
    after_lines: int,
    number: int = signal.SIGKILL,
) -> Iterator[list[int]]:
    """Sends a signal to one of the processes ``titled`` so, or to ``every`` one, once so many lines of
    metrics are there."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not killed:
            if steps_done(run) >= after_lines:
                at_work = titled()
                for process in at_work if every else at_work[-1:]:
                    process.send_signal(number)
                    killed.append(process.pid)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join(timeout=60)


@pytest.fixture(scope="module")
def two_ranks(
    ray_cluster: None, config_of: ConfigOf, reinforced: Reinforced, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Weights, list[float]]:
    """Three steps of two sharded learner ranks and one generator: the weights and the losses."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return reinforced(config_of(folder, *TWO_RANKS, "cluster.generators=1")), losses(folder)


@pytest.fixture
def undisturbed(two_ranks: tuple[Weights, list[float]]) -> Weights:
    return two_ranks[0]


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_goes_on_from_a_checkpoint_with_the_same_losses(
    two_ranks: tuple[Weights, list[float]],
    config_of: ConfigOf,
    reinforced: Reinforced,
    tmp_path: Path,
    first: int,
    then: int,
) -> None:
    run = tmp_path / "run"

    def settings(ranks: int) -> Config:
        return config_of(run, *TWO_RANKS, f"cluster.learners={ranks}", "cluster.generators=1")

    with pytest.raises(Interrupted):
        reinforced(settings(first), lambda: steps_done(run) > 1)
    newest = checkpoint.latest(run / "checkpoints" / "rl")
    assert newest is not None and newest.name == "step-00001"
    assert len(list(newest.glob("optimizer*.safetensors"))) == first
    weights = reinforced(settings(then))
    assert losses(run) == pytest.approx(two_ranks[1], abs=1e-5)
    for name, tensor in two_ranks[0].items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("generators", [2, 4])
def test_the_number_of_generators_changes_nothing(
    undisturbed: Weights, config_of: ConfigOf, reinforced: Reinforced, tmp_path: Path, generators: int
) -> None:
    config = config_of(tmp_path / "run", *TWO_RANKS, f"cluster.generators={generators}")
    assert identical(reinforced(config), undisturbed)


@pytest.mark.parametrize(
    ("title", "every", "after_lines"),
    [
        ("ray::Learner.learn", False, 1),  # one rank, in the first update: before any checkpoint
        ("ray::Learner.learn", False, 2),
        ("ray::Learner.learn", True, 2),
        ("ray::Generator.generate", True, 1),
        ("ray::Scorer", True, 2),
    ],
    ids=["a rank at once", "a rank later", "all ranks", "all generators at work", "the scorer"],
)
def test_a_killed_actor_changes_no_bit(
    undisturbed: Weights,
    config_of: ConfigOf,
    reinforced: Reinforced,
    processes: Processes,
    tmp_path: Path,
    title: str,
    every: bool,
    after_lines: int,
) -> None:
    run = tmp_path / "run"
    config = config_of(run, *TWO_RANKS, "cluster.generators=2")
    with killing(run, partial(processes, title), every, after_lines) as killed:
        weights = reinforced(config)
    assert killed
    assert identical(weights, undisturbed)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        0,
        1,
        2,
        3,
    ]


def test_a_frozen_learner_rank_is_replaced_after_the_deadline(
    undisturbed: Weights,
    config_of: ConfigOf,
    reinforced: Reinforced,
    processes: Processes,
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path / "run", *TWO_RANKS, "cluster.generators=2", "cluster.deadline_s=20")
    learning = partial(processes, "ray::Learner.learn")
    with killing(tmp_path / "run", learning, False, 2, signal.SIGSTOP) as frozen:
        weights = reinforced(config)
    assert len(frozen) == 1 and not psutil.pid_exists(frozen[0])
    assert identical(weights, undisturbed)


def test_a_killed_rank_of_a_colocated_run_changes_no_bit(
    undisturbed: Weights,
    config_of: ConfigOf,
    reinforced: Reinforced,
    processes: Processes,
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path / "run", *TWO_RANKS, "cluster.generators=2", "cluster.colocated=true")
    with killing(tmp_path / "run", partial(processes, "ray::Learner.learn"), False, 2) as killed:
        weights = reinforced(config)
    assert killed
    assert identical(weights, undisturbed)
