"""The GDPO loss, value and gradient, on two completions of three tokens worked out by hand.

epsilon = .2, beta = 0, advantages 2 and -1; n = 3 and 2, the last token of row 1 comes after its EOS.
Two quadrature nodes t = 1/2 -+ 1/(2 sqrt 3) of weight 1/2: a hidden token weighs a = 1/(1 - 1/sqrt 3) =
(3 + sqrt 3)/2 in view 0 and b = 1/(1 + 1/sqrt 3) = (3 - sqrt 3)/2 in view 1; a + b = 3.
Row 0 hides token 1, then all three; row 1 hides nothing, then token 0.

    new - old    row 0: -ln 2 | 0, -ln 2, 0           row 1: - | (2/b) ln 2
    l - l_old    -(a + b) ln 2 = -3 ln 2              2 ln 2
    rho          1/2                                  2
    J            min(1, 1.6) = 1                      min(-2, -1.2) = -2

    loss = -(1 - 2) / 2 = .5
    d loss / d l = -A rho / (2 n) = -1/6 and 1/2, times the weight: -a/6 | -b/6 thrice, and b/2
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.gdpo import GDPO

X, LN2 = math.nan, math.log(2)
A, B = (3 + 3**0.5) / 2, (3 - 3**0.5) / 2
AHEAD = [[[X, -LN2, X], [X, X, X]], [[0, -LN2, 0], [2 / B * LN2, X, X]]]
WEIGHTS = [[[0, A, 0], [0, 0, 0]], [[B, B, B], [B, 0, 0]]]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]  # [K, n=1, G, L]


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand():
    old = torch.full((2, 1, 2, 3), -1.5, dtype=torch.float64)
    terms = Terms(
        new=(old + tensor(AHEAD)).requires_grad_(),
        old=old,
        reference=None,
        weights=tensor(WEIGHTS),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=5),
    )
    loss = GDPO(epsilon=0.2, beta=0).loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(0.5, abs=1e-6)
    expected = [[[0, -A / 6, 0], [0, 0, 0]], [[-B / 6, -B / 6, -B / 6], [B / 2, 0, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected), atol=1e-6)
