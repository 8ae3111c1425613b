"""Placement: the cluster, and whether it can hold what the recipe asks for."""

import os
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

    Args:
        learner: whether diffu-GRPO runs, or only its pools, for evaluation.

    Raises:
        ResourceError: names the resource, the amounts and the settings that ask for it.
    """
    available = ray.cluster_resources()
    supervised = config.sft is not None or config.model.make is not None
    for stage in ["sft", "rl"] if supervised else ["rl"]:
        for resource, amount, asked in demands(config.cluster, stage, learner):
            found = available.get(resource, 0)
            if amount > found + 1e-9:
                raise ResourceError(
                    f"stage {stage} needs {amount:g} {resource} ({asked}) but the cluster has {found:g}; "
                    f"lower those settings or add nodes"
                )


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
        return pools
    learners = {"CPU": c.learner_cpus, "GPU": c.learner_gpus}
    return [
        (resource, amount + learners[resource], f"{asked} + a learner with {learners[resource]:g}")
        for resource, amount, asked in pools
    ]
