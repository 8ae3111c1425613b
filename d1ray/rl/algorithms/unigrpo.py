"""UniGRPO (MMaDA, arXiv 2505.15809): GRPO on the masked tokens of randomly masked completions.

    loss = - mean over completions i and views v of  1 / |M_iv|  sum_{k in M_iv} (J_k - beta KL_k)

M_iv are the tokens up to the first EOS that view v hides of completion i; old, reference and current
policy see the same views. J is PPO's clipped surrogate, KL is k3. The paper has one view per inner
update and divides by |o_i|; only masked tokens have a value, so |M_iv| is meant.
"""

from typing import ClassVar, Literal

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.random_ratio import RandomRatio
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.clipped import Clipped, clipped_surrogate, k3, likelihood_ratio, mean_loss, truncated_importance


class UniGRPO(Clipped):
    """Token-level clipped policy optimisation on random mask ratios."""

    estimators: ClassVar = ("random_ratio",)

    name: Literal["unigrpo"] = "unigrpo"
    estimator: AnyEstimator = RandomRatio()
    advantage: AdvantageName = "mean_std"

    def loss(self, terms: Terms) -> Loss:
        masked = terms.weights != 0  # M [K, n, G, L]
        logp = terms.under_each_policy(terms.where_scored)  # l_k [K, n, G, L]
        ratio = likelihood_ratio(new=logp.new, old=logp.old)  # rho_k
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages[..., None], self.epsilon)  # J_k
        weight, importance = truncated_importance(logp, terms.importance_cap)  # 1 unless rl.importance_cap
        kl = k3(new=logp.new, reference=logp.reference) if self.beta > 0 else ratio.new_zeros(())  # KL_k
        return mean_loss(
            self.beta * kl - weight * surrogate,
            {**importance, "kl": kl, "clip_fraction": clipped},
            over=masked,
            each=masked.sum(-1, keepdim=True).clamp(min=1),  # |M_iv| [K, n, G, 1]
            total=terms.totals.completions * self.estimator.views_per_update,
        )
