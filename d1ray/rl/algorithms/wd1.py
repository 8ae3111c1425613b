"""wd1 (arXiv 2507.08838): raise good completions and lower bad ones, each weighted by its advantage.

    s_i  = sum_k l_ik                                  sequence log-probability, one step
    w+_i = softmax_i(psi A),  w-_i = softmax_i(-psi A)           over the group
    loss = mean over groups of  sum_i (w-_i - w+_i) s_i

No ratio, no old and no reference policy. The paper's weights come from exp(psi A); psi = 1 is what its
code does. That code takes the softmax over a device's batch, which is one group there: here it is over
the group whatever the batch. As in the code, s_i is a sum over tokens, not a mean.
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.one_step import OneStep
from d1ray.rl.algorithm import Algorithm, Loss, Terms


class WD1(Algorithm):
    """Weighted log-likelihood, positive and negative."""

    estimators: ClassVar = ("one_step", "elbo", "trajectory")
    needs_old: ClassVar = False

    name: Literal["wd1"] = "wd1"
    estimator: AnyEstimator = OneStep()
    psi: PositiveFloat = Field(1.0, description="how sharply weights follow advantages")

    def loss(self, terms: Terms) -> Loss:
        good = (self.psi * terms.advantages).softmax(-1)  # [n, G]
        bad = (-self.psi * terms.advantages).softmax(-1)
        sequence = terms.weighted(terms.new).sum((0, -1))
        raised, lowered = (good * sequence).sum(), (bad * sequence).sum()
        groups = terms.totals.groups
        return Loss(
            (lowered - raised) / groups,
            {"logp_raised": raised.detach() / groups, "logp_lowered": lowered.detach() / groups},
        )
