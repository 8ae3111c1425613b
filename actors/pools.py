"""The two pools of a run: generators that sample and scorers that judge."""

from pathlib import Path

import ray

from actors.generator import Generator
from actors.pool import Pool
from actors.scorer import Scorer
from d1ray.config import Config


class Pools:
    """Starts the generator and scorer pools of ``config`` and kills them on ``close``.

    Args:
        folder: a model folder; generators take architecture and tokenizer from it.
    """

    def __init__(self, config: Config, folder: Path):
        c = config.cluster
        generator = ray.remote(Generator).options(
            num_cpus=c.generator_cpus,
            num_gpus=c.generator_gpus,
            resources=dict(c.generator_resources),
            max_restarts=-1,
            max_task_retries=0,
        )
        scorer = ray.remote(Scorer).options(
            num_cpus=c.scorer_cpus,
            resources=dict(c.scorer_resources),
            max_restarts=-1,
            max_task_retries=0,
        )
        self.generators = Pool(
            lambda place: generator.remote(
                folder, c.generator_threads, c.deadline_s, config.model.precision, place
            ),
            max(c.generators, c.max_generators or 0),
        )
        self.scorers = Pool(lambda place: scorer.remote(config.task, config.scoring, place), c.scorers)

    def close(self) -> None:
        self.generators.close()
        self.scorers.close()
