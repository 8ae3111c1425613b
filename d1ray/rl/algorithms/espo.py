"""ESPO (arXiv 2512.03759): the completion is one action, its log-probability the ELBO.

The ELBO comes from pairs of complementary masks, the advantage from the other completions of the group;
the loss stands in ``sequence_clipped``. The published code counts all L positions, also those after the
EOS; here n is the tokens up to the first EOS, in the masks, the ratio and the KL alike.
"""

from typing import Literal

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.elbo import Elbo
from d1ray.rl.advantage import AdvantageName
from d1ray.rl.algorithms.sequence_clipped import SequenceClipped


class ESPO(SequenceClipped):
    """Sequence-level policy optimisation on coupled masks."""

    name: Literal["espo"] = "espo"
    estimator: AnyEstimator = Elbo(rule="coupled", samples=2)
    advantage: AdvantageName = "leave_one_out"
