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
from d1ray.rl.algorithms.token_clipped import TokenClipped


class UniGRPO(TokenClipped):
    """Token-level clipped policy optimisation on random mask ratios."""

    estimators: ClassVar = ("random_ratio",)

    name: Literal["unigrpo"] = "unigrpo"
    estimator: AnyEstimator = RandomRatio()
    advantage: AdvantageName = "mean_std"

    def loss(self, terms: Terms) -> Loss:
        scored = terms.weights != 0
        masked = scored.sum(-1, keepdim=True).clamp(min=1)  # [K, n, G, 1]
        means = terms.totals.completions * self.estimator.views_per_update
        return self.mean_loss(terms, scored, masked, means)
