"""BGPO (arXiv 2510.11683): a lower bound of the sequence objective that is a sum over views.

With K views, each an estimate l_v of the ELBO (their mean is the estimator's), and n tokens:

    d_v  = (l_v - l_v,old) / n
    g_v  = 1 + d_v  if A > 0,  exp(d_v)  if A < 0
    loss = - mean over completions and views of  min(A g_v, clip(g_v, 1 - eps, 1 + eps) A)

exp(mean d) >= 1 + mean d, and mean exp(d) >= exp(mean d): without the clip, mean_v A g_v bounds
A exp(mean_v d_v) from below and has its value and gradient at l = l_old. Memory does not grow with K.
As in the code the clip is per view and no KL is used. The code divides by the padded length, and cuts
the loss of bad completions at three times their advantage; here n is the completion's own, and nothing
is cut. ``rl.importance_cap`` is refused: the bound holds for a completion's weight, which all views make
together, and not for a weight of each view.
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.elbo import Elbo
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithm import Algorithm, Loss, Terms
from d1ray.rl.clipped import bounded_exp, clipped_surrogate, log_ratio


class BGPO(Algorithm):
    """Many views at the memory of one."""

    estimators: ClassVar = ("elbo",)

    name: Literal["bgpo"] = "bgpo"
    estimator: AnyEstimator = Elbo(rule="stratified", samples=16)
    advantage: AdvantageName = "mean_std"
    epsilon: PositiveFloat = Field(0.2, description="PPO clip range")

    def loss(self, terms: Terms) -> Loss:
        views = self.estimator.views_per_update
        elbo = terms.under_each_policy(lambda logps: views * terms.weighted(logps).sum(-1))  # l_v [K, n, G]
        d = log_ratio(new=elbo.new, old=elbo.old, length=terms.lengths)  # d_v
        ratio = (1 + d).where(terms.advantages > 0, bounded_exp(d))  # g_v
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages, self.epsilon)
        means = terms.totals.completions * views
        return Loss(
            -surrogate.sum() / means,
            {"clip_fraction": clipped.sum() / means, "elbo": elbo.new.detach().sum() / means},
        )
