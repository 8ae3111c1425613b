"""UniGRPO's views: each hides a random share of the completion (MMaDA, arXiv 2505.15809, Section 3.3)."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from d1ray.config import rng
from d1ray.config.settings import PositiveInt, Probability
from d1ray.diffusion.estimators.subsets import SubsetEstimator, Subsets, not_below_low, random_subsets

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly however many there are


class RandomRatio(SubsetEstimator):
    """K = ``samples`` views; hidden tokens weigh 1.

    View k of inner update m hides each valid token with probability

        t = low + (high - low) ((u + k / K + m GOLDEN) mod 1),    u ~ U(0, 1) for each completion,

    so every t is uniform, and the t of a completion are spread over its views and, as in the paper, over
    its inner updates. A view that would hide nothing hides one token, uniformly chosen.
    """

    name: Literal["random_ratio"] = "random_ratio"
    samples: PositiveInt = Field(1, description="views of each inner update")
    low: Probability = Field(0.1, description="lowest share of hidden tokens")
    high: Annotated[Probability, AfterValidator(not_below_low)] = Field(
        0.9, validate_default=True, description="highest share of hidden tokens"
    )

    @property
    def views_per_update(self) -> int:
        return self.samples

    def subsets(self, n: int, seed: int, group_id: int, inner: int, rollout: int) -> Subsets:
        start = rng.generator(seed, "estimator ratio", group_id, rollout).random()
        spread = (start + np.arange(self.samples) / self.samples + inner * GOLDEN) % 1
        draw = rng.generator(seed, "estimator", group_id, inner, rollout)
        hidden = random_subsets(draw, self.low + (self.high - self.low) * spread, n)
        instead = np.arange(n) == draw.integers(n, size=self.samples)[:, None]
        empty = ~hidden.any(axis=1, keepdims=True)
        return np.where(empty, instead, hidden), np.ones(self.samples)
