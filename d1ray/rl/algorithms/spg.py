"""SPG (arXiv 2510.09541): raise a lower bound of good completions, lower an upper bound of bad ones.

With views j that score tokens S_j, w_jk = 1 / (K |S_j|) the estimator's weights, p_k(j) the probability
of token k in view j and n the tokens up to the first EOS, per token:

    E    = sum_jk w_jk log p_k(j)                                   lower bound (ELBO)
    a_k  = sum_j n w_jk p_k(j)^eubo_beta
    U    = mean over tokens scored in any view of (1/eubo_beta) log a_k       upper bound (EUBO)
    l    = E  if A >= 0,   omega U + (1 - omega) E  if A < 0
    loss = - (1 / number of tokens) sum_i A_i n_i l_i

No ratio, no clip, no KL. U leaves out the constant of the paper's bound, as the code does: its gradient
is the bound's, its value is not; and the logarithm of a mean over K views is biased low, less so with
more views. Everything stays in logarithms, so tiny probabilities do not underflow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from d1ray.config.settings import Probability
from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.block_bounds import BlockBounds
from d1ray.rl.algorithm import Algorithm, Loss, Terms

if TYPE_CHECKING:
    from torch import Tensor


class SPG(Algorithm):
    """Sandwiched policy gradient on block-wise masks."""

    estimators: ClassVar = ("block_bounds",)
    mixes_views: ClassVar = True
    needs_old: ClassVar = False

    name: Literal["spg"] = "spg"
    estimator: AnyEstimator = BlockBounds()
    eubo_beta: float = Field(1.5, ge=1, description="order of the upper bound; smaller is tighter")
    omega: Probability = Field(0.5, description="share of the upper bound for bad completions")

    def loss(self, terms: Terms) -> Loss:
        lower = terms.weighted(terms.new).sum((0, -1))  # E [n, G]
        upper = self._upper_bound(terms)  # U
        mixed = self.omega * upper + (1 - self.omega) * lower
        sequence = mixed.where(terms.advantages < 0, lower)  # l
        completions = terms.totals.completions
        return Loss(
            -(terms.advantages * terms.lengths * sequence).sum() / terms.totals.tokens,
            {
                "elbo_per_token": lower.detach().sum() / completions,
                "eubo_gap": (upper - lower).detach().sum() / completions,
            },
        )

    def _upper_bound(self, terms: Terms) -> Tensor:
        """U ``[n, G]``, per token."""
        scored = terms.weights != 0  # k in S_j [K, n, G, L]
        used = scored.any(0)  # [n, G, L]
        powers = self.eubo_beta * terms.new + (terms.lengths[..., None] * terms.weights).log()
        inner = powers.where(scored, -math.inf).masked_fill(~used, 0.0)  # all -inf has no gradient
        log_a = inner.logsumexp(0).masked_fill(~used, 0.0)  # log a_k
        return log_a.sum(-1) / used.sum(-1).clamp(min=1) / self.eubo_beta
