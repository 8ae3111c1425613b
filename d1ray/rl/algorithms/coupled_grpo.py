"""coupled-GRPO (DiffuCoder, arXiv 2506.20639): each token is scored fully masked and in one of two halves.

    l_k  = sum_v w_kv log pi(o_k | view v)     views: all masked, M, and the complement of M
    rho_k = exp(l_k - l_k,old)
    loss = - (1 / number of tokens) sum over tokens up to the first EOS of (J_k - beta KL_k)

The weights, 1/2 for the full mask and 1/(2t) or 1/(2(1-t)) for the half that holds the token, add to more
than 1: rho is a power between 1 and 3 of a probability ratio, hence the wide clip range. As in the code,
k3 takes l_k too.
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.coupled import Coupled
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.clipped import Clipped, clipped_surrogate, k3, likelihood_ratio, mean_loss, truncated_importance


class CoupledGRPO(Clipped):
    """Token-level clipped policy optimisation on a complementary pair of masks."""

    estimators: ClassVar = ("coupled",)
    mixes_views: ClassVar = True

    name: Literal["coupled_grpo"] = "coupled_grpo"
    estimator: AnyEstimator = Coupled()
    advantage: AdvantageName = "leave_one_out"
    epsilon: PositiveFloat = Field(0.5, description="PPO clip range")

    def loss(self, terms: Terms) -> Loss:
        logp = terms.under_each_policy(lambda logps: terms.weighted(logps).sum(0))  # l_k [n, G, L]
        ratio = likelihood_ratio(new=logp.new, old=logp.old)  # rho_k
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages[..., None], self.epsilon)  # J_k
        weight, importance = truncated_importance(logp, terms.importance_cap)  # 1 unless rl.importance_cap
        kl = k3(new=logp.new, reference=logp.reference) if self.beta > 0 else ratio.new_zeros(())  # KL_k
        return mean_loss(
            self.beta * kl - weight * surrogate,
            {**importance, "kl": kl, "clip_fraction": clipped},
            over=(terms.weights != 0).any(0),
            total=terms.totals.tokens,
        )
