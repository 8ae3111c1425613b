"""What SFT and RL train, an adapter or all weights, and where they hold it."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from d1ray.config.lora import LoRAConfig
from d1ray.config.settings import Strict


class TrainedWeights(Strict):
    """What is trained, and how the processes that train it together share it."""

    section: ClassVar[str]  # of the run's settings, for messages

    lora: LoRAConfig | None = Field(None, description="train an adapter; null: all weights")
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp spreads weights and optimiser over the processes; none: a copy each"
    )
    offload: bool = Field(
        False,
        description="sharded weights, gradients and optimiser state live in CPU memory and visit the GPU "
        "block by block",
    )

    @model_validator(mode="after")
    def _what_is_offloaded_is_sharded(self) -> Self:
        if self.offload and self.sharding != "fsdp":
            raise ValueError(
                f"{self.section}.offload=true keeps sharded weights on the CPU; set {self.section}.sharding="
                "fsdp too"
            )
        return self
