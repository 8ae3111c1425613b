"""Masked-diffusion training on demonstrations: pre-training phases and SFT (d1, Section 3.1)."""

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from d1ray.config.data import DataConfig
from d1ray.config.kinds import OptionalTask
from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.settings import PositiveInt, Strict
from d1ray.config.weights import TrainedWeights

DemonstrationStyle = Literal["clean", "corrupted"]


class MaskedTrainingOptimizerConfig(OptimizerConfig):
    """d1's SFT optimiser where it differs from its RL one."""

    learning_rate: PositiveFloat = 1e-5
    max_grad_norm: PositiveFloat = 1.0


class MaskedTrainingConfig(Strict):
    """Masked-diffusion training on demonstrations: pre-training phases and SFT."""

    demonstrations: DemonstrationStyle = "clean"
    examples: PositiveInt | None = Field(
        None, description="distinct demonstrations; null: unlimited fresh ones, or all rows of a file"
    )
    steps: PositiveInt = 1000
    batch_size: PositiveInt = Field(64, description="demonstrations an update, over all workers")
    eps: float = Field(1e-3, gt=0, le=1, description="smallest masking probability t")
    eos_padding: PositiveInt | None = Field(
        None, description="EOS up to a multiple of so many tokens; null: to data.max_completion_length"
    )
    overlong: Literal["error", "truncate"] = Field("error", description="completions that are too long")
    micro_batch_tokens: PositiveInt | None = Field(
        None, description="tokens per forward/backward; null: a worker's whole share of the batch"
    )
    packing: bool = Field(False, description="short demonstrations share rows, without seeing each other")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the computation; see also lora")
    gradient_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")
    checkpoint_every: PositiveInt | None = Field(None, description="steps; null: only when interrupted")
    optimizer: MaskedTrainingOptimizerConfig = MaskedTrainingOptimizerConfig()


class SFTConfig(TrainedWeights, MaskedTrainingConfig):
    """The SFT stage (d1, Section 3.1): an adapter or all weights, on the run's task or on data of its own."""

    section: ClassVar = "sft"

    task: OptionalTask = Field(None, description="whose demonstrations; null: the run's task")
    data: DataConfig | None = Field(None, description="where they come from; null: the run's data")
    validate_every: PositiveInt | None = Field(
        None, description="steps between validation losses, the least of which chooses the model"
    )
    validation_examples: PositiveInt = 256
    patience: PositiveInt | None = Field(
        None, description="validations without a new least loss after which training stops"
    )

    @model_validator(mode="after")
    def _patience_is_of_validations(self) -> Self:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations; set validate_every too")
        return self
