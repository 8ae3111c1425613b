"""GDPO (arXiv 2510.08554): the completion is one action, its log-probability the ELBO by quadrature.

    l    = sum over views and tokens of weight x log-probability     the ELBO, by Gauss-Legendre masking times
    rho  = exp((l - l_old) / n)           n: tokens up to the first EOS
    loss = - mean over completions of (J - beta KL),   KL = (l - l_ref)^2 / (2 n)

The paper prints the ratio as ELBO / ELBO_old and divides the surrogate by |y|; with exp((l - l_old) / n)
and no further division the gradient at l = l_old is the paper's, and the clip range does not depend on the
length. Its KL estimate is open; k2 as in ESPO makes the two comparable.
"""

from typing import ClassVar, Literal

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.elbo import Elbo
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.clipped import Clipped, clipped_surrogate, k2, likelihood_ratio, truncated_importance


class GDPO(Clipped):
    """Sequence-level policy optimisation on quadrature times."""

    estimators: ClassVar = ("elbo",)
    mixes_views: ClassVar = True

    name: Literal["gdpo"] = "gdpo"
    estimator: AnyEstimator = Elbo(rule="gauss_legendre", samples=3)

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
