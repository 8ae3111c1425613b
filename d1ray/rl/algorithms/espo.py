"""ESPO (arXiv 2512.03759): the completion is one action, its log-probability the ELBO.

    l    = sum over views and tokens of weight x log-probability     the ELBO, by pairs of complementary masks
    rho  = exp((l - l_old) / n)           n: tokens up to the first EOS
    loss = - mean over completions of (J - beta KL),   KL = (l - l_ref)^2 / (2 n)

Without the 1/n a completion of 200 tokens would be clipped at once. The KL is k2 of the whole ELBO, not
of the ELBO per token, and then divided by n: its gradient is (l - l_ref) / n per unit of l. An importance
weight of J is of the whole completion too, and of its ELBO per token, like the ratio.

The published code counts all L positions, also those after the EOS; here n is the tokens up to the first
EOS, in the masks, the ratio and the KL alike.
"""

from typing import ClassVar, Literal

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.elbo import Elbo
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.clipped import Clipped, clipped_surrogate, k2, likelihood_ratio, truncated_importance


class ESPO(Clipped):
    """Sequence-level policy optimisation on coupled masks."""

    estimators: ClassVar = ("elbo",)
    mixes_views: ClassVar = True

    name: Literal["espo"] = "espo"
    estimator: AnyEstimator = Elbo(rule="coupled", samples=2)
    advantage: AdvantageName = "leave_one_out"

    def loss(self, terms: Terms) -> Loss:
        n, completions = terms.lengths, terms.totals.completions
        elbo = terms.under_each_policy(lambda logps: terms.weighted(logps).sum((0, -1)))  # l [n, G]
        ratio = likelihood_ratio(new=elbo.new, old=elbo.old, length=n)  # rho
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages, self.epsilon)  # J
        weight, importance = truncated_importance(elbo, terms.importance_cap, length=n)  # 1 without a cap
        loss = -(weight * surrogate).sum()
        metrics = {"clip_fraction": clipped, "elbo": elbo.new, **importance}
        if self.beta > 0:
            metrics["kl"] = k2(new=elbo.new, reference=elbo.reference) / n  # KL
            loss = loss + self.beta * metrics["kl"].sum()
        return Loss(
            loss / completions, {name: value.detach().sum() / completions for name, value in metrics.items()}
        )
