"""The ESPO loss, value and gradient, on two completions of three tokens worked out by hand.

epsilon = .2, beta = .1, advantages 2 and -1; n = 3 and 2, the last token of row 1 comes after its EOS.
One coupled sample: row 0 hides token 0 (x = 1, weight 4/2 = 2), then tokens 1 and 2 (weight 4/4 = 1);
row 1 hides both its tokens (x = 2, weight 3/4), then none.

    new - old    row 0: -ln 2 | -ln 2, 0              row 1: 4/3 ln 2, 4/3 ln 2 | -
    l - l_old    -2 ln 2 - ln 2 = -3 ln 2             3/4 (8/3 ln 2) = 2 ln 2
    rho          exp(-3 ln 2 / 3) = 1/2               exp(2 ln 2 / 2) = 2
    J            min(1, 1.6) = 1                      min(-2, -1.2) = -2
    new - ref    1 | 1, 0                             -8/3, 0
    l - l_ref    3                                    -2
    KL           3^2 / (2 x 3) = 1.5                  2^2 / (2 x 2) = 1

    loss = (-(1 - 2) + .1 (1.5 + 1)) / 2 = .625
    2 x d loss / d l = -A rho / n + .1 (l - l_ref) / n = -1/3 + .1 = -7/30 and 1 - .1 = .9
    d loss / d new   = that / 2 x weight: -7/30 | -7/60, -7/60  and  .3375, .3375

With the advantages' signs turned, both are clipped: J = -1.6 and 1.2, and only the KL has a gradient.
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.espo import ESPO

X, LN2 = math.nan, math.log(2)
AHEAD = [[[-LN2, X, X], [4 / 3 * LN2, 4 / 3 * LN2, X]], [[X, -LN2, 0], [X, X, X]]]
ABOVE = [[[1, X, X], [-8 / 3, 0, X]], [[X, 1, 0], [X, X, X]]]
WEIGHTS = [[[2, 0, 0], [0.75, 0.75, 0]], [[0, 1, 1], [0, 0, 0]]]
ALGORITHM = ESPO(epsilon=0.2, beta=0.1)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]  # [K, n=1, G, L]


def example(advantages=(2.0, -1.0), reference=True):
    old = torch.full((2, 1, 2, 3), -1.5, dtype=torch.float64)
    new = old + tensor(AHEAD)
    return Terms(
        new=new.requires_grad_(),
        old=old,
        reference=new.detach() - tensor(ABOVE) if reference else None,
        weights=tensor(WEIGHTS),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([advantages], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=5),
    )


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand():
    terms = example()
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(0.625, abs=1e-6)
    expected = [[[-7 / 30, 0, 0], [0.3375, 0.3375, 0]], [[0, -7 / 60, -7 / 60], [0, 0, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected), atol=1e-6)


def test_a_clipped_completion_is_only_pulled_towards_the_reference():
    terms = example(advantages=(-2.0, 1.0))
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx((1.6 - 1.2 + 0.25) / 2, abs=1e-6)
    expected = [[[0.1, 0, 0], [-0.0375, -0.0375, 0]], [[0, 0.05, 0.05], [0, 0, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected), atol=1e-6)
    assert float(loss.metrics["clip_fraction"]) == 1


def test_the_metrics_are_means_over_completions():
    metrics = ALGORITHM.loss(example()).metrics
    # l = l_old + (l - l_old): row 0 (2 + 1 + 1)(-1.5) - 3 ln 2, row 1 1.5 (-1.5) + 2 ln 2
    assert float(metrics["elbo"]) == pytest.approx((-6 - 3 * LN2 - 2.25 + 2 * LN2) / 2)
    assert float(metrics["kl"]) == pytest.approx(2.5 / 2)
    assert float(metrics["clip_fraction"]) == 0


def test_without_beta_no_reference_is_needed():
    algorithm = ESPO(epsilon=0.2, beta=0)
    assert not algorithm.needs_reference
    assert float(algorithm.loss(example(reference=False)).total.detach()) == pytest.approx(0.5)


@pytest.mark.parametrize("advantages", [(1.0, -1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("away", [1e4, -1e4])
def test_a_huge_change_of_the_elbo_gives_a_finite_loss_and_gradient(advantages, away):
    terms = example(advantages)
    with torch.no_grad():
        terms.new.add_(away)
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert loss.total.isfinite()
    assert terms.new.grad.isfinite().all()
