"""DiffuCoder's coupled views: everything, a random half and its complement (arXiv 2506.20639, Section 4)."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from d1ray.config import rng
from d1ray.diffusion.estimators.subsets import SubsetEstimator, Subsets, not_below_low, random_subsets

Inside = Annotated[float, Field(gt=0, lt=1)]


class Coupled(SubsetEstimator):
    """Three views; every valid token is scored twice, fully masked and in one of two complementary masks.

    | view | hidden                          | weight          |
    |------|---------------------------------|-----------------|
    | 0    | everything                      | 1 / 2           |
    | 1    | each token with probability t   | 1 / (2 t)       |
    | 2    | the tokens that view 1 shows    | 1 / (2 (1 - t)) |

    with t ~ U(low, high) for each completion and inner update. The weighted sum of a token's two
    log-probabilities is the paper's per-token value; its weights add up to between 1.125 and 3 at the
    default range, 1.5 on average, so it is a score rather than a log-probability.
    """

    name: Literal["coupled"] = "coupled"
    low: Inside = Field(0.2, description="lowest share of hidden tokens in view 1")
    high: Annotated[Inside, AfterValidator(not_below_low)] = Field(
        0.8, validate_default=True, description="highest share of hidden tokens in view 1"
    )

    @property
    def views_per_update(self) -> int:
        return 3

    def subsets(self, n: int, seed: int, group_id: int, inner: int, rollout: int) -> Subsets:
        draw = rng.generator(seed, "estimator", group_id, inner, rollout)
        t = draw.uniform(self.low, self.high)
        half = random_subsets(draw, np.array([t]), n)
        hidden = np.concatenate([np.ones_like(half), half, ~half])
        return hidden, np.array([1 / 2, 1 / (2 * t), 1 / (2 * (1 - t))])
