"""Config: one whole run. Each section stands in a file of its own beside this one.

The defaults are d1's published hyper-parameters (arXiv 2504.12216, Section 4 and Appendix B).
"""

from typing import Self

from pydantic import Field, model_validator
from upath import UPath

from d1ray.config.cluster import ClusterConfig, TrackingConfig
from d1ray.config.data import DataConfig
from d1ray.config.evaluation import EvaluationConfig, ScoringConfig
from d1ray.config.kinds import AnyTask
from d1ray.config.model import ModelConfig
from d1ray.config.rl import RLConfig
from d1ray.config.settings import AbsolutePath, NonNegativeInt, Strict
from d1ray.config.sft import SFTConfig


class Config(Strict):
    """One run. ``load_config`` builds it from a recipe and overrides."""

    about: str = ""
    seed: NonNegativeInt = 0
    run_dir: AbsolutePath | None = Field(None, description="null: runs/RECIPE")
    checkpoint_path: str | None = Field(
        None, description="null: run_dir/checkpoints; else any fsspec path, e.g. s3://BUCKET/RUN"
    )
    task: AnyTask
    data: DataConfig = DataConfig()
    model: ModelConfig
    sft: SFTConfig | None = None
    rl: RLConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    scoring: ScoringConfig = ScoringConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _every_worker_has_rows(self) -> Self:
        phases = [
            *(self.model.make.pretraining if self.model.make else ()),
            *([self.sft] if self.sft else []),
        ]
        for phase in phases:
            if phase.batch_size < self.cluster.sft_workers:
                raise ValueError(
                    f"cluster.sft_workers={self.cluster.sft_workers} is more than a batch_size of "
                    f"{phase.batch_size}: every worker needs a row"
                )
        return self

    @model_validator(mode="after")
    def _colocated_actors_take_turns(self) -> Self:
        if self.cluster.colocated and self.rl is not None and self.rl.staleness:
            raise ValueError(
                f"cluster.colocated=true: generators and learner take turns, so nothing overlaps; set "
                f"rl.staleness=0 (it is {self.rl.staleness})"
            )
        return self

    @model_validator(mode="after")
    def _whole_weights_are_broadcast(self) -> Self:
        if self.cluster.broadcast and self.rl is not None and self.rl.lora:
            raise ValueError(
                "cluster.broadcast=true is for full fine-tuning; with rl.lora only the adapter is published, "
                "which is small: leave broadcast out"
            )
        return self

    def checkpoint_root(self, stage: str) -> UPath:
        """Where the checkpoints of a stage lie."""
        assert self.run_dir is not None
        return UPath(self.checkpoint_path or self.run_dir / "checkpoints") / stage

    def check_length(self, limit: int, source: str) -> None:
        """Raises ValueError if prompt and completion can be longer than ``limit``, which ``source`` sets."""
        longest = self.data.max_prompt_length + max(
            [self.data.max_completion_length, self.evaluation.sampling.gen_length]
            + ([self.rl.sampling.gen_length] if self.rl else [])
        )
        if longest > limit:
            raise ValueError(
                f"data.max_prompt_length plus the longest completion is {longest} tokens, more than "
                f"{source}={limit}"
            )
        own = self.sft.data if self.sft else None
        if own and own.max_prompt_length + own.max_completion_length > limit:
            raise ValueError(
                f"sft.data.max_prompt_length plus max_completion_length is "
                f"{own.max_prompt_length + own.max_completion_length} tokens, more than {source}={limit}"
            )

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if self.model.make is not None:
            self.check_length(self.model.make.max_sequence_length, "model.make.max_sequence_length")
        return self
