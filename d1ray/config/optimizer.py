"""AdamW and its learning rate, as SFT and RL share them."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from d1ray.config.settings import MomentumDecay, NonNegativeInt, Probability, Strict


class OptimizerConfig(Strict):
    """AdamW with warm-up, then a constant or linearly decaying learning rate."""

    learning_rate: PositiveFloat = 3e-6
    schedule: Literal["constant", "linear"] = "constant"
    warmup_updates: NonNegativeInt = 0
    final_ratio: Probability = Field(0.0, description="last learning rate over the peak, for `linear`")
    betas: tuple[MomentumDecay, MomentumDecay] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.1
    max_grad_norm: PositiveFloat = 0.2
