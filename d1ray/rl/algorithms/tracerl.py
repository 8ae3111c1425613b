"""TraceRL (arXiv 2509.06949): token ratios along the sampler's own trajectory.

    loss = - mean over completions of  (1/n) sum_k (J_k - beta KL_k)

Token k is scored in the view where it was committed: tokens committed earlier are visible, it and later
ones are masked. Every token up to the first EOS, n in all, is scored once. KL is k3 to the policy that
the ratio refers to: the one that sampled, as in the paper and its code, unless ``rl.importance_cap`` is set.
That code averages within a view first, so that tokens of small views weigh more, and sums its KL instead
of averaging it; here all tokens of a completion weigh the same in both. The optional value model is left
out.
"""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.trajectory import Trajectory
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithm import Loss, Terms
from d1ray.rl.clipped import Clipped, clipped_surrogate, k3, likelihood_ratio, mean_loss, truncated_importance


class TraceRL(Clipped):
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
        logp = terms.under_each_policy(terms.where_scored)  # l_k [K, n, G, L]
        ratio = likelihood_ratio(new=logp.new, old=logp.old)  # rho_k
        surrogate, clipped = clipped_surrogate(ratio, terms.advantages[..., None], self.epsilon)  # J_k
        weight, importance = truncated_importance(logp, terms.importance_cap)  # 1 unless rl.importance_cap
        kl = k3(new=logp.new, reference=logp.old) if self.beta > 0 else ratio.new_zeros(())  # KL_k
        return mean_loss(
            self.beta * kl - weight * surrogate,
            {**importance, "kl": kl, "clip_fraction": clipped},
            over=terms.weights != 0,
            each=terms.lengths[..., None],
            total=terms.totals.completions,
        )
