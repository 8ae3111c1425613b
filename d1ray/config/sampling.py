"""How completions are denoised: lengths, schedule, temperature, decoding policy, guidance and cache."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from d1ray.config.settings import PositiveInt, Probability, Strict

COLDEST = 1e-4  # temperature above 0: logits over less overflow
# These commit as many positions as the model is sure of, whatever the schedule says. Each is named like the
# setting that limits it.
ADAPTIVE = ("threshold", "factor", "entropy_bound")
DecodingName = Literal[
    "low_confidence",
    "random",
    "maskgit_plus",
    "topk_margin",
    "entropy",
    "threshold",
    "factor",
    "entropy_bound",
]


class SamplerConfig(Strict):
    """How completions are denoised (LLaDA, arXiv 2502.09992, Algorithm 5; Dream, arXiv 2508.15487).

    What only some decodings read (steps and schedule, the limits of adaptive ones, position_temperature) the
    others leave alone, so that a recipe's ``decoding`` can be switched by itself.
    """

    gen_length: PositiveInt = Field(256, description="completion length in tokens")
    steps: PositiveInt = Field(128, description="denoising steps, where the schedule says how many commit")
    block_length: PositiveInt = Field(32, description="semi-autoregressive block, in tokens")
    temperature: NonNegativeFloat = Field(0.9, description="0 is greedy")
    decoding: DecodingName = Field("low_confidence", description="which positions a denoising step commits")
    schedule: Literal["uniform", "time"] = Field(
        "uniform", description="how many positions a step commits: LLaDA's equal shares, or Dream's times"
    )
    threshold: Probability = Field(0.9, description="least confidence that `threshold` commits")
    factor: NonNegativeFloat = Field(1.0, description="`factor` commits rank r from 1 - factor / (r + 1) on")
    entropy_bound: NonNegativeFloat = Field(0.1, description="nats of joint entropy `entropy_bound` risks")
    position_temperature: NonNegativeFloat = Field(
        0.0, description="0 commits the most confident; above, positions are drawn (Dream's alg_temp)"
    )
    cfg_scale: NonNegativeFloat = Field(0.0, description="classifier-free guidance; 0 is off")
    cache: Literal["none", "prefix", "dual"] = Field(
        "none", description="keys and values kept within a block: none (exact), those before it, all others"
    )

    @field_validator("temperature", "position_temperature")
    @classmethod
    def _not_too_cold(cls, value: float) -> float:
        if 0 < value < COLDEST:
            raise ValueError(f"{value} is too cold for fp32 numbers; choose 0, which is greedy, or {COLDEST}")
        return value

    @property
    def scheduled(self) -> bool:
        """Whether ``steps`` and ``schedule`` say how many positions a step commits."""
        return self.decoding not in ADAPTIVE

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.gen_length % self.block_length:
            raise ValueError(
                f"block_length={self.block_length} does not divide gen_length={self.gen_length}; "
                f"choose a block_length that does"
            )
        blocks = self.gen_length // self.block_length
        if self.scheduled and self.steps % blocks:
            raise ValueError(
                f"steps={self.steps} must be a multiple of the {blocks} block(s) of "
                f"gen_length={self.gen_length} and block_length={self.block_length}"
            )
        if self.scheduled and self.schedule == "uniform" and self.steps > self.gen_length:
            raise ValueError(
                f"steps={self.steps} is more than gen_length={self.gen_length}, and every step of the "
                f"uniform schedule commits a token; choose fewer steps"
            )
        return self
