"""Placement: the cluster, whether it can hold what the recipe asks for, and places that are taken at once."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from d1ray.config.cluster import ClusterConfig
from d1ray.config.errors import ResourceError
from d1ray.config.run import Config


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Connects to the cluster of ``config.address`` or ``RAY_ADDRESS``, else starts a local one.

    A cluster started here ends with the block; one that was connected to goes on.
    """
    if ray.is_initialized():  # inside a program that already chose its cluster
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    options = {}
    if address == "local":
        options = {"include_dashboard": config.dashboard}
    ray.init(address=address, logging_level="warning", log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


POLL_S = 0.1


@dataclass(frozen=True)
class Kind:
    """Actors of one kind that a stage holds at once.

    Attributes:
        name: of one of them.
        setting: says how many.
        count: how many.
        bundle: what each one holds, by resource; nothing that is 0.
    """

    name: str
    setting: str
    count: int
    bundle: Mapping[str, float]


def kinds(c: ClusterConfig, stage: Literal["sft", "rl"], learner: bool) -> list[Kind]:
    """What a stage starts; of "rl" without ``learner`` only the pools, for evaluation."""
    if stage == "sft":
        return [_kind("SFT worker", "sft_workers", c.sft_workers, c.sft_worker_cpus, c.sft_worker_gpus)]
    scorers = _kind("scorer", "scorers", c.scorers, c.scorer_cpus, 0, c.scorer_resources)
    if c.colocated:
        return [shared_place(c), scorers]
    return [generator(c), scorers, *([learner_rank(c)] if learner else [])]


def generator(c: ClusterConfig) -> Kind:
    """Generators with GPUs of their own."""
    return _kind(
        "generator", "generators", c.generators, c.generator_cpus, c.generator_gpus, c.generator_resources
    )


def learner_rank(c: ClusterConfig) -> Kind:
    """Learner ranks with GPUs of their own."""
    return _kind("learner rank", "learners", c.learners, c.learner_cpus, c.learner_gpus, c.learner_resources)


def shared_place(c: ClusterConfig) -> Kind:
    """Colocated generators, each with what a learner rank holds too."""
    one, other = generator(c).bundle, learner_rank(c).bundle
    both = {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return Kind("generator and learner rank", "cluster.generators", c.generators, both)


def _kind(
    name: str,
    setting: str,
    count: int,
    cpus: float,
    gpus: float,
    custom: Mapping[str, float] = MappingProxyType({}),
) -> Kind:
    amounts = {"CPU": cpus, "GPU": gpus, **custom}
    return Kind(name, f"cluster.{setting}", count, {name: held for name, held in amounts.items() if held})


def check_resources(config: Config, learner: bool) -> None:
    """Compares what each stage holds at once with what the cluster has.

    A cluster that was there before is asked for what is missing (its autoscaler may add nodes), and gets
    ``cluster.placement_s`` to have it.

    Args:
        learner: whether diffu-GRPO runs, or only its pools, for evaluation.

    Raises:
        ResourceError: names the resource, the amounts and the settings that ask for it.
    """
    missing = unmet(config, learner)
    if missing and not _is_own_cluster(config.cluster):
        with _asked_of_an_autoscaler(config.cluster, learner):
            end = time.monotonic() + config.cluster.placement_s
            while (missing := unmet(config, learner)) and time.monotonic() < end:
                time.sleep(0.5)
    if missing:
        raise ResourceError(f"{'; '.join(missing)}; lower those settings or add nodes (see `d1ray doctor`)")


def unmet(config: Config, learner: bool) -> list[str]:
    """What the cluster lacks, a line each; [] if it holds every stage."""
    available = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    supervised = config.sft is not None or config.model.make is not None
    stages: list[Literal["sft", "rl"]] = ["sft", "rl"] if supervised else ["rl"]
    missing = []
    for stage in stages:
        asked = kinds(config.cluster, stage, learner)
        for resource in dict.fromkeys(name for kind in asked for name in kind.bundle):
            parts = [kind for kind in asked if resource in kind.bundle]
            amount = sum(kind.count * kind.bundle[resource] for kind in parts)
            if amount > available.get(resource, 0) + 1e-9:
                sum_of = " + ".join(f"{k.count} {k.setting} x {k.bundle[resource]:g}" for k in parts)
                missing.append(
                    f"stage {stage} needs {amount:g} {resource} ({sum_of}) but the cluster has "
                    f"{available.get(resource, 0):g}"
                )
        for kind in asked:
            if not any(all(node.get(k, 0) >= v for k, v in kind.bundle.items()) for node in nodes):
                missing.append(f"no node has {dict(kind.bundle)} for one {kind.name}")
    return missing


def _is_own_cluster(cluster: ClusterConfig) -> bool:
    return not cluster.address and "RAY_ADDRESS" not in os.environ


@contextmanager
def _asked_of_an_autoscaler(cluster: ClusterConfig, learner: bool) -> Iterator[None]:
    """Tells an autoscaler, if there is one, which actors will come; not longer, or it would keep their nodes
    for ever."""
    from ray.autoscaler.sdk import request_resources

    request_resources(
        bundles=[dict(kind.bundle) for kind in kinds(cluster, "rl", learner) for _ in range(kind.count)]
    )
    try:
        yield
    finally:
        request_resources(bundles=[])


def placed(kind: Kind, deadline_s: float, patience: Callable[[], object] = lambda: None) -> PlacementGroup:
    """A place for all actors of a kind at once; whoever asks gives it back (``remove_placement_group``).

    Args:
        patience: called again and again meanwhile; what it raises ends the wait.

    Raises:
        ResourceError: there was none within ``deadline_s``.
    """
    group = placement_group([dict(kind.bundle)] * kind.count, strategy="PACK")
    ready, end = group.ready(), time.monotonic() + deadline_s
    try:
        while not ray.wait([ready], timeout=POLL_S)[0]:
            patience()
            if time.monotonic() > end:
                raise ResourceError(
                    f"no place for {kind.count} x {kind.name} ({kind.setting}) with {dict(kind.bundle)} each "
                    f"within {deadline_s:g} s; free are {ray.available_resources()}"
                )
    except BaseException:
        remove_placement_group(group)
        raise
    return group


@contextmanager
def shared_places(
    c: ClusterConfig, patience: Callable[[], object] = lambda: None
) -> Iterator[PlacementGroup | None]:
    """With ``cluster.colocated`` a place for each generator, in which learner rank i joins generator i; else
    None. It outlives the actors in it: those that start again do so in their place, and where its node died
    Ray finds another. ``patience`` is called while they are waited for.

    Raises:
        ResourceError: there is no room for all of them within ``cluster.placement_s``.
    """
    if not c.colocated:
        yield None
        return
    group = placed(shared_place(c), c.placement_s, patience)
    try:
        yield group
    finally:
        remove_placement_group(group)


def is_leaving(places: PlacementGroup, first: int) -> bool:
    """Whether a node of the ``first`` places has been told to go: a spot node before it is taken back, or one
    that an autoscaler removes. False where Ray does not say."""
    from ray._private.state import state

    try:
        leaving = state.get_draining_nodes()
        where = placement_group_table(places)["bundles_to_node_id"] if leaving else {}
    except Exception:  # a checkpoint more is no reason to end a run
        return False
    return any(where.get(index) in leaving for index in range(first))


def label(config: Config) -> str:
    """How the names of some actors of a run begin on Ray's dashboard; a name can be used once at a time."""
    return f"{config.run_dir.name if config.run_dir else 'd1ray'}-{uuid.uuid4().hex[:6]}"


def at(group: PlacementGroup | None, index: int) -> dict[str, Any]:
    """The options of an actor whose place is bundle ``index`` of ``group``; none without one."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)} if group else {}
