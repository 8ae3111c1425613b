"""The model: a folder, a hub id, or an architecture to make."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from d1ray.config.settings import LocalOrHub, PositiveInt, Strict
from d1ray.config.sft import MaskedTrainingConfig


class ArchitectureConfig(Strict):
    """A LLaDA architecture to make from scratch."""

    d_model: PositiveInt = 128
    n_layers: PositiveInt = 4
    n_heads: PositiveInt = 4
    mlp_hidden_size: PositiveInt = 384
    max_sequence_length: PositiveInt = 256
    rope_theta: PositiveFloat = 500_000.0
    pretraining: tuple[MaskedTrainingConfig, ...] = ()

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"n_heads={self.n_heads} must split d_model={self.d_model} into heads of even size (RoPE)"
            )
        return self


class ModelConfig(Strict):
    """Where the model comes from: a Hugging Face folder or hub id, or an architecture to make."""

    path: LocalOrHub | None = Field(None, description="folder or hub id")
    make: ArchitectureConfig | None = None
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of generators, and of the RL learner's matrix products and frozen weights"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.make is None):
            raise ValueError("set exactly one of model.path (a folder) and model.make (an architecture)")
        return self
