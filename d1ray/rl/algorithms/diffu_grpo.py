"""diffu-GRPO (d1, arXiv 2504.12216, Eq. 3): one-step log-probabilities, clipped ratio, k3 KL.

    rho_k = pi(o_k | q') / pi_old(o_k | q')           q': the prompt, partly masked; the completion is hidden
    loss  = - (1 / number of tokens) sum over tokens up to the first EOS of (J_k - beta KL_k)

Eq. 3 averages over each completion first; as in d1's code, all tokens of the batch weigh the same here.
"""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.one_step import OneStep
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.clipped import Clipped, clipped_surrogate, k3, likelihood_ratio, mean_loss, truncated_importance


class DiffuGRPO(Clipped):
    """Token-level clipped policy optimisation on one-step log-probabilities."""

    estimators: ClassVar = ("one_step", "trajectory")

    name: Literal["diffu_grpo"] = "diffu_grpo"
    estimator: AnyEstimator = OneStep()
    epsilon: PositiveFloat = Field(0.5, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.04, description="weight of the k3 KL to the reference")

    def loss(self, terms: Terms) -> Loss:
        logp = terms.under_each_policy(terms.where_scored)  # log pi(o_k | q') [K, n, G, L]
        ratio = likelihood_ratio(new=logp.new, old=logp.old)  # rho_k
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages[..., None], self.epsilon)  # J_k
        weight, importance = truncated_importance(logp, terms.importance_cap)  # 1 unless rl.importance_cap
        kl = k3(new=logp.new, reference=logp.reference) if self.beta > 0 else ratio.new_zeros(())  # KL_k
        return mean_loss(
            self.beta * kl - weight * surrogate,
            {**importance, "kl": kl, "clip_fraction": clipped},
            over=terms.weights != 0,
            total=terms.totals.view_tokens,
        )
