"""diffu-GRPO (d1, arXiv 2504.12216, Eq. 3): one-step log-probabilities, clipped ratio, k3 KL.

loss = - (1 / number of tokens) sum over tokens up to the first EOS of (J_k - beta KL_k)
"""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.one_step import OneStep
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.algorithms.token_clipped import TokenClipped


class DiffuGRPO(TokenClipped):
    """Token-level clipped policy optimisation on one-step log-probabilities."""

    estimators: ClassVar = ("one_step", "trajectory")

    name: Literal["diffu_grpo"] = "diffu_grpo"
    estimator: AnyEstimator = OneStep()
    epsilon: PositiveFloat = Field(0.5, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.04, description="weight of the k3 KL to the reference")

    def loss(self, terms: Terms) -> Loss:
        return self.mean_loss(terms, terms.weights != 0, 1, terms.totals.view_tokens)
