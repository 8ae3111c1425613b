"""The UniGRPO loss, value and gradient, in two views of two completions of three tokens, by hand.

epsilon = .2, beta = .1, advantages 2 and -1. "-" is not scored; the last token of row 1 is after its EOS.

                 view 0                       view 1
    row 0  ratio   1.5   -   .5                 -   1.1   -
           J       2.4c  -   1                  -   2.2   -       min(2 ratio, 2 clip); c: clipped
           ref-new ln 2  -   0                  -   0     -
    row 1  ratio   -    .5   -                  1   2     -
           J       -   -.8c  -                 -1  -2     -       min(-ratio, -clip)
           ref-new -     0   -              -ln 2   0     -

    means of J over the tokens a view scores: 1.7, -.8, 2.2, -1.5; over the four (view, row): 1.6 / 4
    k3: 1 - ln 2 over 2 tokens and ln 2 - .5 over 2 tokens: together .25; over the four: .25 / 4
    loss = (.1 x .25 - 1.6) / 4 = -.39375
    d loss / d new = (-A ratio unless clipped, + .1 (1 - exp(ref - new))) / (4 x tokens the view scores)
        view 0: -.1/8, -1/8; 0      view 1: -2.2/4; 1.05/8, 2/8
"""

import math

import pytest
import torch

from d1ray.diffusion.estimators.random_ratio import RandomRatio
from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.unigrpo import UniGRPO

X = math.nan
RATIO = [[[1.5, X, 0.5], [X, 0.5, X]], [[X, 1.1, X], [1.0, 2.0, X]]]
AWAY = [[[math.log(2), X, 0], [X, 0, X]], [[X, 0, X], [-math.log(2), 0, X]]]
ALGORITHM = UniGRPO(epsilon=0.2, beta=0.1, estimator=RandomRatio(samples=2))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]  # [K, n=1, G, L]


@pytest.fixture
def terms():
    old = torch.full((2, 1, 2, 3), -1.5, dtype=torch.float64)
    new = old + tensor(RATIO).log()
    return Terms(
        new=new.requires_grad_(),
        old=old,
        reference=new.detach() + tensor(AWAY),
        weights=(~tensor(RATIO).isnan()).float(),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=6),
    )


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand(terms):
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-0.39375, abs=1e-6)
    expected = [[[-0.0125, 0, -0.125], [0, 0, 0]], [[0, -0.55, 0], [1.05 / 8, 0.25, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected), atol=1e-6)


def test_the_metrics_are_means_over_views_and_completions(terms):
    metrics = ALGORITHM.loss(terms).metrics
    assert float(metrics["kl"]) == pytest.approx(0.25 / 4)
    assert float(metrics["clip_fraction"]) == pytest.approx((1 / 2 + 1) / 4)
