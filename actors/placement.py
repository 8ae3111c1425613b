"""Placement: the cluster, and whether it can hold what the recipe asks for."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from d1ray.config import ClusterConfig, Config
from d1ray.errors import ResourceError


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
    supervised = config.sft is not None or config.model.make is not None
    missing = [
        f"stage {stage} needs {amount:g} {resource} ({asked}) but the cluster has "
        f"{available.get(resource, 0):g}"
        for stage in (["sft", "rl"] if supervised else ["rl"])
        for resource, amount, asked in demands(config.cluster, stage, learner)
        if amount > available.get(resource, 0) + 1e-9
    ]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, count, bundle in bundles(config.cluster, learner):
        if count and not any(all(node.get(k, 0) >= v for k, v in bundle.items()) for node in nodes):
            missing.append(f"no node has {bundle} for one {kind}")
    return missing


def bundles(c: ClusterConfig, learner: bool) -> list[tuple[str, int, dict[str, float]]]:
    """The kinds of actors of the RL stage: how many, and what each one holds."""
    kinds = [
        (
            "generator",
            c.generators,
            {"CPU": c.generator_cpus, "GPU": c.generator_gpus, **c.generator_resources},
        ),
        ("scorer", c.scorers, {"CPU": c.scorer_cpus, **c.scorer_resources}),
        (
            "learner",
            c.learners if learner else 0,
            {"CPU": c.learner_cpus, "GPU": c.learner_gpus, **c.learner_resources},
        ),
    ]
    return [(kind, count, {k: v for k, v in bundle.items() if v}) for kind, count, bundle in kinds]


def _is_own_cluster(cluster: ClusterConfig) -> bool:
    return not cluster.address and "RAY_ADDRESS" not in os.environ


@contextmanager
def _asked_of_an_autoscaler(cluster: ClusterConfig, learner: bool) -> Iterator[None]:
    """Tells an autoscaler, if there is one, which actors will come; not longer, or it would keep their nodes
    for ever."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[bundle for _, n, bundle in bundles(cluster, learner) for _ in range(n)])
    try:
        yield
    finally:
        request_resources(bundles=[])


def demands(cluster: ClusterConfig, stage: str, learner: bool) -> list[tuple[str, float, str]]:
    """(resource, amount, the settings that ask for it) of a stage, "sft" or "rl"."""
    c = cluster
    if stage == "sft":
        return [
            ("CPU", c.sft_workers * c.sft_worker_cpus, "cluster.sft_workers x cluster.sft_worker_cpus"),
            ("GPU", c.sft_workers * c.sft_worker_gpus, "cluster.sft_workers x cluster.sft_worker_gpus"),
        ]
    pools = [
        (
            "CPU",
            c.generators * c.generator_cpus + c.scorers * c.scorer_cpus,
            f"{c.generators} cluster.generators x {c.generator_cpus:g} + "
            f"{c.scorers} cluster.scorers x {c.scorer_cpus:g}",
        ),
        ("GPU", c.generators * c.generator_gpus, f"{c.generators} cluster.generators x {c.generator_gpus:g}"),
    ]
    if not learner:
        return pools + _custom(c, learners=0)
    each = {"CPU": c.learner_cpus, "GPU": c.learner_gpus}
    return [
        (
            resource,
            amount + c.learners * each[resource],
            f"{asked} + {c.learners} learner x {each[resource]:g}",
        )
        for resource, amount, asked in pools
    ] + _custom(c)


def _custom(c: ClusterConfig, learners: int | None = None) -> list[tuple[str, float, str]]:
    """Custom resources of all actors of the RL stage."""
    counts = {
        "generator": (c.generators, c.generator_resources),
        "scorer": (c.scorers, c.scorer_resources),
        "learner": (c.learners if learners is None else learners, c.learner_resources),
    }
    totals: dict[str, tuple[float, list[str]]] = {}
    for kind, (count, resources) in counts.items():
        for name, amount in resources.items():
            total, asked = totals.get(name, (0.0, []))
            totals[name] = total + count * amount, [*asked, f"cluster.{kind}_resources x {count}"]
    return [(name, total, ", ".join(asked)) for name, (total, asked) in totals.items() if total]
