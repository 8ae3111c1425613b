"""The coupled-GRPO loss, value and gradient, on two completions of three tokens worked out by hand.

epsilon = .5, beta = .1, advantages 2 and -1; the last token of row 1 comes after its EOS. View 0 scores every
token at weight 1/2. Row 0 has t = 1/2, so its halves weigh 1: token 1 in view 1, tokens 0 and 2 in view 2.
Row 1 has t = 1/4: token 0 in view 1 at weight 2, token 1 in view 2 at weight 2/3. In units of ln 2:

    new - old     row 0                     row 1
      view 0      1     0   -2              2    0
      view 1      -     0    -              0    -
      view 2     1/2    -   -1              -   -3
    weighted      1     0   -2              1   -2
    ratio         2     1   1/4             2   1/4
    J = min       3c    2   1/2            -2  -1/2c         sum 3; c: clipped
    ref - new: 1 in view 1 at token 1 of row 0; -2 in view 0 at token 0 of row 1; else 0
    weighted      0     1    0             -1    0
    k3            0  1-ln 2  0          ln 2-.5  0           sum .5

    loss = (.1 x .5 - 3) / 5 tokens = -.59
    5 x d loss / d l = -A ratio unless clipped, + .1 (1 - exp(weighted ref - new)):
                  0   -2.1  -.5            2.05   0          and each view's share is its weight
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.coupled_grpo import CoupledGRPO

X = math.nan
AHEAD = [[[1, 0, -2], [2, 0, X]], [[X, 0, X], [0, X, X]], [[0.5, X, -1], [X, -3, X]]]
AWAY = [[[0, 0, 0], [-2, 0, X]], [[X, 1, X], [0, X, X]], [[0, X, 0], [X, 0, X]]]
WEIGHTS = [[[0.5, 0.5, 0.5], [0.5, 0.5, 0]], [[0, 1, 0], [2, 0, 0]], [[1, 0, 1], [0, 2 / 3, 0]]]
ALGORITHM = CoupledGRPO(epsilon=0.5, beta=0.1)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]  # [K, n=1, G, L]


@pytest.fixture
def terms():
    old = torch.full((3, 1, 2, 3), -1.5, dtype=torch.float64)
    new = old + math.log(2) * tensor(AHEAD)
    return Terms(
        new=new.requires_grad_(),
        old=old,
        reference=new.detach() + math.log(2) * tensor(AWAY),
        weights=tensor(WEIGHTS),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=10),
    )


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand(terms):
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-0.59, abs=1e-6)
    expected = [
        [[0, -1.05, -0.25], [1.025, 0, 0]],
        [[0, -2.1, 0], [4.1, 0, 0]],
        [[0, 0, -0.5], [0, 0, 0]],
    ]
    assert torch.allclose(terms.new.grad, tensor(expected) / 5, atol=1e-6)


def test_the_metrics_are_means_over_tokens(terms):
    metrics = ALGORITHM.loss(terms).metrics
    assert float(metrics["kl"]) == pytest.approx(0.5 / 5)
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 5)
