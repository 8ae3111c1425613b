"""GDPO (arXiv 2510.08554): the completion is one action, its log-probability the ELBO by quadrature.

The integral over masking times is a Gauss-Legendre sum of a few fixed times; the loss stands in
``sequence_clipped``. The paper prints the ratio as ELBO / ELBO_old and divides the surrogate by |y|; with
exp((l - l_old) / n) and no further division the gradient at l = l_old is the paper's, and the clip range
does not depend on the length. Its KL estimate is open; k2 as in ESPO makes the two comparable.
"""

from typing import Literal

from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.elbo import Elbo
from d1ray.rl.algorithms.sequence_clipped import SequenceClipped


class GDPO(SequenceClipped):
    """Sequence-level policy optimisation on quadrature times."""

    name: Literal["gdpo"] = "gdpo"
    estimator: AnyEstimator = Elbo(rule="gauss_legendre", samples=3)
