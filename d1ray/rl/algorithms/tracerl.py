"""TraceRL (arXiv 2509.06949): token ratios along the sampler's own trajectory.

    loss = - mean over completions of  (1/n) sum_k (J_k - beta KL_k)

Token k is scored in the view where it was committed: tokens committed earlier are visible, it and later
ones are masked. Every token up to the first EOS, n in all, is scored once. KL is k3 to the policy that
the ratio refers to: the one that sampled, as in the paper and its code, unless ``rl.importance_cap`` is set.
That code averages within a view first, so that tokens of small views weigh more, and sums its KL instead
of averaging it; here all tokens of a completion weigh the same in both. The optional value model is left
out.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.trajectory import Trajectory
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.algorithms.token_clipped import TokenClipped


class TraceRL(TokenClipped):
    """Token-level clipped policy optimisation on the replayed trajectory."""

    estimators: ClassVar = ("trajectory",)

    name: Literal["tracerl"] = "tracerl"
    estimator: AnyEstimator = Trajectory()
    advantage: AdvantageName = "mean_std"
    beta: NonNegativeFloat = Field(0.01, description="weight of the k3 KL to the policy of the ratio")

    @property
    def needs_reference(self) -> bool:
        return False

    def loss(self, terms: Terms) -> Loss:
        terms = replace(terms, reference=terms.old)
        return self.mean_loss(terms, terms.weights != 0, terms.lengths[..., None], terms.totals.completions)
