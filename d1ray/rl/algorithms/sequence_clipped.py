"""The loss of ESPO and GDPO: one clipped ratio per completion, of its ELBO per token.

    l    = sum over views and tokens of weight x log-probability       the estimate of the ELBO
    rho  = exp((l - l_old) / n)           n: tokens up to the first EOS
    loss = - mean over completions of (J - beta KL),   KL = (l - l_ref)^2 / (2 n)

Without the 1/n a completion of 200 tokens would be clipped at once. The KL is k2 of the whole ELBO, not
of the ELBO per token, and then divided by n: its gradient is (l - l_ref) / n per unit of l. An importance
weight of J is of the whole completion too, and of its ELBO per token, like the ratio.
"""

from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from d1ray.rl.algorithm import Algorithm, Loss, Terms
from d1ray.rl.clipped import bounded_exp, clipped_surrogate, k2, truncated_importance


class SequenceClipped(Algorithm):
    """Sequence-level clipped policy optimisation."""

    estimators: ClassVar = ("elbo",)
    mixes_views: ClassVar = True
    weighs_importance: ClassVar = True

    epsilon: PositiveFloat = Field(0.2, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.01, description="weight of the k2 KL to the reference")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def loss(self, terms: Terms) -> Loss:
        assert terms.old is not None
        elbo = terms.weighted(terms.new).sum((0, -1))  # [n, G]
        old = terms.weighted(terms.old).sum((0, -1))
        ratio = bounded_exp((elbo - old) / terms.lengths)
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages, self.epsilon, self.epsilon)
        completions = terms.totals.completions
        metrics = {"clip_fraction": clipped.sum() / completions, "elbo": elbo.detach().sum() / completions}
        if terms.behaviour is not None:
            assert terms.importance_cap is not None
            behaviour = terms.weighted(terms.behaviour).sum((0, -1)) / terms.lengths
            weight, cut = truncated_importance(old / terms.lengths, behaviour, terms.importance_cap)
            surrogate = weight * surrogate
            metrics["importance_mean"] = weight.sum() / completions
            metrics["importance_truncated"] = cut.sum() / completions
        loss = -surrogate.sum()
        if self.beta > 0:
            assert terms.reference is not None
            kl = (k2(elbo, terms.weighted(terms.reference).sum((0, -1))) / terms.lengths).sum()
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach() / completions
        return Loss(loss / completions, metrics)
