"""The BGPO loss, value and gradient, in two views of two completions of three tokens, by hand.

epsilon = .2, advantages 2 and -1; n = 3 and 2, the last token of row 1 comes after its EOS. A view that hides
c tokens weighs them n / (2 c): row 0 hides token 1 (3/2), then all (1/2); row 1 both tokens (1/2), then
token 0 (1). A view's own estimate is twice its weighted sum.

                  row 0                               row 1
    new - old     .1 | .9, 0, 0                       ln 2, ln 2 | -ln 2
    l_v - l_v,old 3 x .1 = .3 | .9                    2 ln 2 | -2 ln 2
    d_v           .1 | .3                             ln 2 | -ln 2
    g_v           1.1 | 1.3                           2 | 1/2
    J_v           2.2 | 2.4c                          -2 | -.8c                    c: clipped

    loss = -(2.2 + 2.4 - 2 - .8) / 4 = -.45
    4 x d loss / d new = -A g'(d) 2 weight / n unless clipped: -2 | 0  and  1, 1 | 0
"""

import math

import pytest
import torch

from d1ray.diffusion.estimators.elbo import Elbo
from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.bgpo import BGPO

X, LN2 = math.nan, math.log(2)
AHEAD = [[[X, 0.1, X], [LN2, LN2, X]], [[0.9, 0, 0], [-LN2, X, X]]]
WEIGHTS = [[[0, 3 / 2, 0], [1 / 2, 1 / 2, 0]], [[1 / 2, 1 / 2, 1 / 2], [1, 0, 0]]]
ALGORITHM = BGPO(epsilon=0.2, estimator=Elbo(rule="stratified", samples=2))
UNCLIPPED = BGPO(epsilon=1e9, estimator=Elbo(rule="stratified", samples=2))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]  # [K, n=1, G, L]


def example(ahead=AHEAD):
    old = torch.full((2, 1, 2, 3), -1.5, dtype=torch.float64)
    return Terms(
        new=(old + tensor(ahead)).requires_grad_(),
        old=old,
        reference=None,
        weights=tensor(WEIGHTS),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=7),
    )


def sequence_objective(terms):
    """sum_i A_i exp((l_i - l_i,old) / n_i) / 2: what BGPO bounds from below."""
    away = (terms.weighted(terms.new) - terms.weighted(terms.old)).sum((0, -1)) / terms.lengths
    return (terms.advantages * away.exp()).sum() / 2


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand():
    terms = example()
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-0.45, abs=1e-6)
    expected = [[[0, -2, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected) / 4, atol=1e-6)


def test_the_metrics_are_means_over_views_and_completions():
    metrics = ALGORITHM.loss(example()).metrics
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 4)
    # l_v: row 0 3 (-1.4), -4.5 + .9; row 1 -3 + 2 ln 2, 2 (-1.5 - ln 2)
    assert float(metrics["elbo"]) == pytest.approx((-4.2 - 3.6 - 3 - 3) / 4)


def test_on_policy_value_and_gradient_are_those_of_the_sequence_objective():
    mine, theirs = (example([[[0.0] * 3] * 2] * 2) for _ in range(2))
    loss, objective = ALGORITHM.loss(mine).total, sequence_objective(theirs)
    loss.backward()
    objective.backward()
    assert float(loss.detach()) == pytest.approx(-float(objective.detach()))
    assert torch.allclose(mine.new.grad, -theirs.new.grad)


@pytest.mark.parametrize("seed", range(5))
def test_without_the_clip_it_bounds_the_sequence_objective_from_below(seed):
    ahead = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(seed))
    terms = example(ahead.tolist())
    bound = -float(UNCLIPPED.loss(terms).total.detach())
    assert bound < float(sequence_objective(terms).detach())


@pytest.mark.parametrize("away", [1e4, -1e4])
def test_a_huge_change_of_the_elbo_gives_a_finite_loss_and_gradient(away):
    terms = example([[[away] * 3] * 2] * 2)
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert loss.total.isfinite()
    assert terms.new.grad.isfinite().all()
