"""The two pools of a run: generators that sample and scorers that judge."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup

from actors.generator import Generator
from actors.placement import at, label, shared_places
from actors.pool import Pool
from actors.scorer import Scorer
from actors.watch import Watch
from d1ray.config.run import Config


class Pools:
    """Starts the generator and scorer pools of ``config`` and kills them on ``close``; see ``opened_pools``.

    Args:
        folder: a model folder; generators take architecture and tokenizer from it.
        places: one for each generator, if it shares its GPU with the learner (``shared_places``).
        note: is told what a user should know.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        places: PlacementGroup | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        c = self.cluster = config.cluster
        self.places = places
        run = label(config)
        lasting: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}

        def generator(place: int) -> ActorHandle:
            options = {
                "name": f"{run}-generator-{place}",
                "num_cpus": c.generator_cpus,
                "num_gpus": c.generator_gpus,
                "resources": dict(c.generator_resources),
            }
            actor = ray.remote(Generator).options(**options, **lasting, **at(places, place))
            precision = config.model.precision
            return actor.remote(folder, c.generator_threads, c.deadline_s, precision, c.colocated, place)

        def scorer(place: int) -> ActorHandle:
            options = {
                "name": f"{run}-scorer-{place}",
                "num_cpus": c.scorer_cpus,
                "resources": dict(c.scorer_resources),
                # In order, rollouts of a fast generator would wait for earlier ones of a slow generator.
                "allow_out_of_order_execution": True,
            }
            return ray.remote(Scorer).options(**options, **lasting).remote(config.task, config.scoring, place)

        size, watch = max(c.generators, c.max_generators or 0), Watch()
        self.generators = Pool(generator, size, watch, "generator", c.min_generators, note)
        self.scorers = Pool(scorer, c.scorers, watch, "scorer", note=note)

    def rest(self) -> None:
        """Has generators that share their GPUs with the learner leave them, until their next calls."""
        if self.cluster.colocated:
            self.generators.everyone("rest", self.cluster.deadline_s)

    def close(self) -> None:
        self.generators.close()
        self.scorers.close()


@contextmanager
def opened_pools(
    config: Config,
    folder: Path,
    patience: Callable[[], object] = lambda: None,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Pools]:
    """The pools, in places that colocated generators share with the learner, while the block runs.

    Raises:
        ResourceError: there is no room for such places (``shared_places``, which calls ``patience``).
    """
    with (
        shared_places(config.cluster, patience) as places,
        closing(Pools(config, folder, places, note)) as pools,
    ):
        yield pools
