"""Colocated placement: generators and learner ranks take turns on shared GPUs, and no bit depends on it."""

import multiprocessing
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import placement_group_table

from actors.learner_gang import LearnerGang
from actors.placement import shared_places
from actors.pool import Pool
from actors.pools import Pools
from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.programs.doctor import examine

ConfigOf = Callable[..., Config]
COLOCATED = [
    "cluster.colocated=true",
    "cluster.generators=2",
    "cluster.learners=2",
    "cluster.learner_cpus=0.25",
]


def test_a_colocated_run_ends_with_the_bits_of_a_disaggregated_one(
    ray_cluster: None,
    config_of: ConfigOf,
    reinforced: Callable[..., dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = [*COLOCATED, "rl.steps=2", "rl.reference_sync_updates=2"]
    apart = reinforced(config_of(tmp_path / "apart", *settings, "cluster.colocated=false"))

    asked = []
    everyone = Pool.everyone
    monkeypatch.setattr(Pool, "everyone", lambda *a: (asked.append(a[1]), everyone(*a)))
    together = reinforced(config_of(tmp_path / "together", *settings))
    assert asked == ["rest"] * 3  # before the ranks are built, and before each step
    assert all(torch.equal(together[name], tensor) for name, tensor in apart.items())
    assert not ray.util.placement_group_table() or {
        group["state"] for group in ray.util.placement_group_table().values()
    } == {"REMOVED"}


def places_on_two_gpus(overrides: list[str], file: Path) -> None:
    """Runs in a process of its own, whose Ray believes in two GPUs: which one each actor is given."""
    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    config = load_config("sudoku-tiny", overrides)
    start = config.model.path
    assert start is not None
    found: dict[str, Any] = {}
    try:
        with (
            shared_places(config.cluster) as places,
            closing(Pools(config, start, places)) as pools,
            closing(LearnerGang(config, start, None, 1, places)) as learner,
        ):
            assert places is not None
            found["bundles"] = list(placement_group_table(places)["bundles"].values())
            for name, actors in (("generators", pools.generators.actors), ("learner", learner.actors)):
                calls = [actor.__ray_call__.remote(lambda _: ray.get_gpu_ids()) for actor in actors]
                found[name] = ray.get(calls, timeout=60)
            found["free"] = ray.available_resources().get("GPU", 0)
            found["doctor"] = {f.check: (f.outcome, f.said) for f in examine(config)}
    finally:
        torch.save(found, file)
        ray.shutdown()


def test_a_generator_and_a_rank_share_a_gpu_and_generators_do_not(
    no_process_left_behind: None, small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    fractions = ["cluster.generator_gpus=0.5", "cluster.learner_gpus=0.4"]
    overrides = small_run(tmp_path / "run", *COLOCATED, "cluster.learners=1", *fractions)
    arguments = (overrides, tmp_path / "found.pt")
    process = multiprocessing.get_context("spawn").Process(target=places_on_two_gpus, args=arguments)
    process.start()
    process.join(timeout=240)
    process.kill()
    found = torch.load(tmp_path / "found.pt")
    assert found["bundles"] == [{"CPU": 0.5, "GPU": 0.9}] * 2
    (one,), (other,) = found["generators"]
    assert {one, other} == {0, 1}
    assert found["learner"] == [[one]]
    assert found["free"] == pytest.approx(0.2)
    outcome, said = found["doctor"]["estimate"]
    assert outcome == "ok" and "take turns" in said
    assert found["doctor"]["resources"][0] == "ok"


def test_missing_shared_places_are_named_with_their_settings(ray_cluster: None, tmp_path: Path) -> None:
    gpus = ["cluster.colocated=true", "cluster.generator_gpus=0.5", "cluster.learner_gpus=0.5"]
    config = load_config("sudoku-tiny", [*gpus, f"run_dir={tmp_path / 'run'}"])
    said = [finding.said for finding in examine(config) if finding.outcome == "failed"]
    assert any(
        "stage rl needs 2 GPU (2 cluster.generators x 1) but the cluster has 0" in line for line in said
    )
    assert any("for one generator and learner rank" in line for line in said)
