"""Weights by broadcast: idle generators have them without fetching any, and whatever fails changes no bit."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from actors.learner_gang import LearnerGang
from actors.policy import PolicyRef
from d1ray.config.run import Config

ConfigOf = Callable[..., Config]
Weights = dict[str, torch.Tensor]
SETTINGS = [
    "rl.steps=3",
    "rl.algorithm=wd1",  # no reference, which would be fetched
    "rl.sharding=fsdp",
    "cluster.learners=2",
    "cluster.learner_cpus=0.25",
    "cluster.generators=2",
]


def identical(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def without(
    ray_cluster: None,
    config_of: ConfigOf,
    reinforced: Callable[..., Weights],
    tmp_path_factory: pytest.TempPathFactory,
) -> Weights:
    folder = tmp_path_factory.mktemp("without") / "run"
    weights = reinforced(config_of(folder, *SETTINGS))
    assert all(row["fetched_parcels"] >= 1 for row in rows(folder)[2:])  # each generator that had a group
    return weights


@pytest.mark.parametrize("colocated", ["false", "true"], ids=["disaggregated", "colocated"])
def test_generators_receive_every_version_and_end_with_the_same_bits(
    without: Weights, config_of: ConfigOf, reinforced: Callable[..., Weights], tmp_path: Path, colocated: str
) -> None:
    settings = [*SETTINGS, "cluster.broadcast=true", f"cluster.colocated={colocated}"]
    assert identical(reinforced(config_of(tmp_path / "run", *settings)), without)
    later = rows(tmp_path / "run")[2:]  # the first version is published before any generator is up
    assert [(row["fetched_parcels"], row["broadcast_failures"]) for row in later] == [(0, 0)] * 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_generator_that_does_not_receive_changes_nothing_but_the_time(
    without: Weights,
    config_of: ConfigOf,
    reinforced: Callable[..., Weights],
    processes: Callable[..., list[psutil.Process]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    """It is hit while it is idle, at the end of the second step, as a member of a circle that has met."""
    hit: list[psutil.Process] = []
    learn, publish = LearnerGang.learn, LearnerGang.publish

    def learn_and_hit(self: LearnerGang, *arguments: Any) -> dict[str, float]:
        metrics = learn(self, *arguments)
        if arguments[1] == 1:
            generators = processes("ray::Generator")
            assert len(generators) == 2
            hit.append(generators[0])
            generators[0].send_signal(number)
        return metrics

    def publish_and_thaw(self: LearnerGang, *arguments: Any) -> PolicyRef:
        policy = publish(self, *arguments)
        if hit and number == signal.SIGSTOP:
            hit[0].resume()
        return policy

    monkeypatch.setattr(LearnerGang, "learn", learn_and_hit)
    monkeypatch.setattr(LearnerGang, "publish", publish_and_thaw)
    wait = "cluster.deadline_s=60"  # of which a broadcast has a fifth
    config = config_of(tmp_path / "run", *SETTINGS, "cluster.broadcast=true", "rl.validate_every=3", wait)
    assert identical(reinforced(config), without)
    assert hit
    assert [row["broadcast_failures"] for row in rows(tmp_path / "run")[1:]] == [0, 1, 1]
    assert "a broadcast of the weights failed (" in capsys.readouterr().out
