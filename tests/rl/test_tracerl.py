"""The TraceRL loss, value and gradient, on two completions of three tokens worked out by hand.

epsilon = .2, beta = .1, advantages 2 and -1; n = 3 and 2, the last token of row 1 comes after its EOS. View 0
scores tokens 0 and 2 of row 0 and token 1 of row 1, view 1 the others.

               row 0                           row 1
    ratio      3/2     1/2     1               1/2     2
    J          2.4c     1      2              -.8c    -2           c: clipped
    k3 to old  ln(3/2)-1/3  1-ln 2  0         1-ln 2  ln 2-1/2     1/ratio + ln ratio - 1

    loss = 1/2 [(-5.4 + .1 (2/3 + ln(3/4))) / 3 + (2.8 + .1 x 1/2) / 2]
    6 x d loss / d new of row 0 = -A ratio unless clipped, + .1 (1 - 1/ratio) = 1/30, -1.1, -2
    4 x d loss / d new of row 1 = -.1, 2.05
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.tracerl import TraceRL

X = math.nan
RATIO = [[[1.5, X, 1.0], [X, 2.0, X]], [[X, 0.5, X], [0.5, X, X]]]
ALGORITHM = TraceRL(epsilon=0.2, beta=0.1)
KL = ((2 / 3 + math.log(3 / 4)) / 3 + 1 / 4) / 2


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]  # [K, n=1, G, L]


@pytest.fixture
def terms():
    old = torch.full((2, 1, 2, 3), -1.5, dtype=torch.float64)
    return Terms(
        new=(old + tensor(RATIO).log()).requires_grad_(),
        old=old,
        reference=None,
        weights=(~tensor(RATIO).isnan()).float(),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=5),
    )


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand(terms):
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx((-5.4 / 3 + 2.8 / 2) / 2 + 0.1 * KL, abs=1e-6)
    row0, row1 = [1 / 180, -1.1 / 6, -2 / 6], [-0.1 / 4, 2.05 / 4]
    expected = [[[row0[0], 0, row0[2]], [0, row1[1], 0]], [[0, row0[1], 0], [row1[0], 0, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected), atol=1e-6)


def test_the_metrics_are_means_over_completions_of_token_means(terms):
    metrics = ALGORITHM.loss(terms).metrics
    assert float(metrics["kl"]) == pytest.approx(KL)
    assert float(metrics["clip_fraction"]) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_no_reference_is_needed():
    assert not ALGORITHM.needs_reference
