"""The RL stage (d1, Section 3 and Table 5)."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, PositiveFloat, model_validator

from d1ray.config.kinds import ALGORITHMS, AnyAlgorithm
from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.sampling import SamplerConfig
from d1ray.config.settings import NonNegativeInt, PositiveInt, Strict
from d1ray.config.weights import TrainedWeights


class MismatchConfig(Strict):
    """When fast decoding is measured (``d1ray.rl.mismatch``), and how far it may stray. Without a limit it is
    only a metric."""

    every: PositiveInt = Field(16, description="one group in this many is measured, if decoding is fast")
    rollouts: PositiveInt = Field(1, description="completions measured of such a group")
    limit: PositiveFloat | None = Field(
        None, description="nats a token above which rollouts are decoded exactly; null: never"
    )


class RLConfig(TrainedWeights):
    """The RL stage (d1, Section 3 and Table 5)."""

    section: ClassVar = "rl"

    steps: NonNegativeInt = Field(640, description="outer steps: generate, score, mu updates, publish")
    prompts_per_step: PositiveInt = 16
    group_size: Annotated[int, Field(strict=True, ge=2)] = 6
    mu: PositiveInt = Field(12, description="inner updates per batch of rollouts")
    algorithm: AnyAlgorithm = Field("diffu_grpo", validate_default=True, description="and its options")
    skip_zero_advantage: bool = Field(False, description="leave groups with equal rewards out of the loss")
    reference_sync_updates: PositiveInt | None = Field(64, description="null: the reference never moves")
    staleness: NonNegativeInt = Field(0, description="0 is synchronous")
    importance_cap: PositiveFloat | None = Field(
        None,
        description="null: the clipped ratio refers to the policy that sampled; a number C: it refers to the "
        "policy before the step, and each token (of sequence-level losses each completion) is weighted by "
        "min(C, pi_before / pi_sampled)",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplerConfig = SamplerConfig()
    mismatch: MismatchConfig = MismatchConfig()
    gradient_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")
    micro_batch_tokens: PositiveInt = Field(16384, description="tokens per forward/backward")
    max_nonfinite: PositiveInt = Field(
        100, description="updates in a row without finite loss and gradient, after which the run ends"
    )
    validate_every: PositiveInt = Field(20, description="outer steps between validations")
    checkpoint_every: PositiveInt = Field(20, description="outer steps; a new best validation has one, too")
    keep_checkpoints: PositiveInt = Field(2, description="so many last ones, beside the best")
    keep_rollouts: PositiveInt | None = Field(
        2000,
        description="steps whose completions stay in rollouts/: half of them the last ones, half at equal "
        "distances over the run; null: all",
    )

    @model_validator(mode="after")
    def _importance_can_be_weighed(self) -> Self:
        if self.importance_cap is not None and not self.algorithm.weighs_importance:
            able = ", ".join(name for name, kind in ALGORITHMS.items() if kind.weighs_importance)
            raise ValueError(
                f"importance_cap={self.importance_cap:g} does not work with algorithm {self.algorithm.name}; "
                f"set it to null, or use one of {able}"
            )
        return self
