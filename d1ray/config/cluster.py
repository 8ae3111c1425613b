"""Actors and what each one holds; experiment trackers."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from d1ray.config.settings import NonNegativeInt, PositiveInt, Strict


class ClusterConfig(Strict):
    """Actors and what each one holds. Logical CPUs only account; `threads` sets torch's threads."""

    address: str | None = Field(None, description="null: RAY_ADDRESS, the job's cluster, or a local one")
    generators: PositiveInt = 2
    max_generators: PositiveInt | None = Field(
        None, description="further generators join whenever there is room, up to so many in all"
    )
    min_generators: PositiveInt = Field(
        1,
        description="so many are kept at work; of those beyond, one that fails again and again is put away",
    )
    scorers: PositiveInt = 1
    generator_cpus: NonNegativeFloat = 1
    generator_gpus: NonNegativeFloat = 0
    generator_threads: PositiveInt = 1
    generator_resources: Mapping[str, PositiveFloat] = Field(
        {}, description="custom Ray resources, to keep a kind of actor to its own nodes"
    )
    scorer_cpus: NonNegativeFloat = 1
    scorer_resources: Mapping[str, PositiveFloat] = {}
    learners: PositiveInt = Field(1, description="ranks that share the learning; see rl.sharding")
    learner_restarts: NonNegativeInt = Field(
        10, description="times the ranks are rebuilt from the newest checkpoint without getting past it"
    )
    learner_cpus: NonNegativeFloat = 1
    learner_gpus: NonNegativeFloat = 0
    learner_threads: PositiveInt = 1
    learner_resources: Mapping[str, PositiveFloat] = {}
    sft_workers: PositiveInt = 1
    sft_threads: PositiveInt = 1
    sft_worker_cpus: PositiveFloat = 1
    sft_worker_gpus: NonNegativeFloat = 0
    colocated: bool = Field(
        False,
        description="generator i and learner rank i share a GPU, their _gpus being fractions, and take turns",
    )
    broadcast: bool = Field(
        False,
        description="full weights go to idle generators by one NCCL or gloo broadcast as well as through the "
        "object store",
    )
    dashboard: bool = Field(False, description="start the Ray dashboard with a local cluster")
    placement_s: NonNegativeFloat = Field(30, description="wait for a cluster to have what is asked for")
    deadline_s: PositiveFloat = Field(600, description="longest wait for any one call, in seconds")
    grace_s: PositiveFloat = Field(
        30,
        description="seconds after a signal for the run to end; an RL step or validation that does not "
        "finish in half of it is given up, and the run resumes from its newest checkpoint; the other half is "
        "for writing one",
    )

    @model_validator(mode="after")
    def _turns_can_be_taken(self) -> Self:
        if not self.colocated:
            return self
        if self.max_generators is not None:
            raise ValueError(
                "colocated generators are as many as there are places; give generators, not max_generators"
            )
        if self.learners > self.generators:
            raise ValueError(
                f"colocated learner ranks each need a generator's place; learners={self.learners} is more "
                f"than generators={self.generators}"
            )
        if self.generator_gpus + self.learner_gpus > 1:
            raise ValueError(
                f"colocated actors share a GPU; generator_gpus={self.generator_gpus:g} and learner_gpus="
                f"{self.learner_gpus:g} are more than 1, give fractions such as 0.5 and 0.5"
            )
        return self


class TrackingConfig(Strict):
    """Experiment trackers beside TensorBoard, which is always there."""

    wandb: str | None = Field(None, description="a Weights & Biases project (extra `wandb`)")
    mlflow: str | None = Field(None, description="an MLflow tracking URI (extra `mlflow`)")
