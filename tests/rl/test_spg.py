"""The SPG loss, value and gradient, in two views of two completions of three tokens, by hand.

eubo_beta = 2, omega = 1/2, advantages 2 and -1; n = 3 and 2, the last token of row 1 comes after its EOS.
Weights are 1 / (2 |S_j|): row 0 scores all tokens (1/6 each), then token 2 (1/2); row 1 both of its
tokens (1/4 each), then token 1 (1/2).

    row 0, good: log p = -1, -2, -.5 | -3       l = E = -3.5/6 - 3/2 = -25/12
    row 1, bad:  p = 1/2, 1/2 | 1/4
        E   = 1/4 ln(1/2) + 1/4 ln(1/2) + 1/2 ln(1/4) = -1.5 ln 2
        a_k = sum_j n w p^2:  a_0 = 2/4 x 1/4 = 1/8,   a_1 = 2/4 x 1/4 + 2/2 x 1/16 = 3/16
        U   = 1/2 x (ln(1/8) + ln(3/16)) / 2 = (ln 3 - 7 ln 2) / 4
        l   = (U + E) / 2

    loss = -(2 x 3 x (-25/12) + (-1) x 2 x (U + E)/2) / 5 tokens = (12.5 + U + E) / 5
    5 x d loss / d log p
      row 0: -2 x 3 x w = -1, -1, -1 | -3
      row 1: dU = (share of a_k) / 2 tokens = 1/2, (2/3)/2 | (1/3)/2;  dE = w = 1/4, 1/4 | 1/2;  sum
             3/4, 7/12 | 2/3
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.spg import SPG

X, LN2 = math.nan, math.log(2)
LOGPS = [[[-1, -2, -0.5], [-LN2, -LN2, X]], [[X, X, -3], [X, -2 * LN2, X]]]
WEIGHTS = [[[1 / 6, 1 / 6, 1 / 6], [1 / 4, 1 / 4, 0]], [[0, 0, 1 / 2], [0, 1 / 2, 0]]]
E, U = -1.5 * LN2, (math.log(3) - 7 * LN2) / 4
ALGORITHM = SPG(eubo_beta=2, omega=0.5)


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]  # [K, n=1, G, L]


def example(advantages=(2.0, -1.0), lower_by=0.0, dtype=torch.float64):
    return Terms(
        new=(tensor(LOGPS, dtype) - lower_by).requires_grad_(),
        old=None,
        reference=None,
        weights=tensor(WEIGHTS, dtype),
        scored=torch.tensor([[[True, True, True], [True, True, False]]]),
        advantages=torch.tensor([advantages], dtype=dtype),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=7),
    )


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand():
    terms = example()
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx((12.5 + U + E) / 5, abs=1e-6)
    expected = [[[-1, -1, -1], [3 / 4, 7 / 12, 0]], [[0, 0, -3], [0, 2 / 3, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected) / 5, atol=1e-6)


def test_omega_is_the_share_of_the_upper_bound():
    good = -25 / 12
    for omega, bad in ((0, E), (1, U)):
        loss = SPG(eubo_beta=2, omega=omega).loss(example())
        assert float(loss.total.detach()) == pytest.approx(-(6 * good - 2 * bad) / 5, abs=1e-6)


def test_the_metrics_are_the_bounds_per_token():
    # Row 0: a = 3/6 exp(-2), 3/6 exp(-4), 3/6 exp(-1) + 3/2 exp(-6)
    a = [math.exp(-2) / 2, math.exp(-4) / 2, math.exp(-1) / 2 + 1.5 * math.exp(-6)]
    upper = sum(math.log(x) for x in a) / 3 / 2
    metrics = ALGORITHM.loss(example()).metrics
    assert float(metrics["elbo_per_token"]) == pytest.approx((-25 / 12 + E) / 2)
    assert float(metrics["eubo_gap"]) == pytest.approx((upper + 25 / 12 + U - E) / 2)


def test_probabilities_far_below_what_fp32_can_hold_keep_their_gradient():
    # Every log p lower by 1000 lowers both bounds by 1000 and changes no gradient.
    near, far = example(dtype=torch.float32), example(lower_by=1000.0, dtype=torch.float32)
    losses = [float(ALGORITHM.loss(terms).total.detach()) for terms in (near, far)]
    for terms in (near, far):
        ALGORITHM.loss(terms).total.backward()
    assert losses[1] - losses[0] == pytest.approx(1000 * (2 * 3 - 2) / 5, rel=1e-5)
    assert torch.allclose(near.new.grad, far.new.grad, atol=1e-3)


def test_a_good_completion_is_judged_by_its_lower_bound_alone():
    terms = example(advantages=(0.0, 1.0))
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-2 * E / 5, abs=1e-6)
    expected = [[[0, 0, 0], [-1 / 2, -1 / 2, 0]], [[0, 0, 0], [0, -1, 0]]]
    assert torch.allclose(terms.new.grad, tensor(expected) / 5, atol=1e-6)


def test_a_token_that_no_view_scores_is_left_out_of_the_upper_bound():
    # n = 3, p = 1/2; view 0 scores tokens 1 and 2 (1/4 each), view 1 token 2 (1/2); omega = 1, A = -1:
    # a_1 = 3/4 x 1/4 = 3/16,  a_2 = 3/16 + 3/2 x 1/4 = 9/16,  loss = n U / 3 tokens = U;
    # dU = (share of a_k) / 2 tokens: 1/2, (1/3)/2 | (2/3)/2
    terms = Terms(
        new=torch.tensor([[X, -LN2, -LN2], [X, X, -LN2]], dtype=torch.float64)[
            :, None, None
        ].requires_grad_(),
        old=None,
        reference=None,
        weights=torch.tensor([[0, 1 / 4, 1 / 4], [0, 0, 1 / 2]], dtype=torch.float64)[:, None, None],
        scored=torch.ones(1, 1, 3, dtype=torch.bool),
        advantages=torch.tensor([[-1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=1, tokens=3, view_tokens=3),
    )
    loss = SPG(eubo_beta=2, omega=1).loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx((math.log(3 / 16) + math.log(9 / 16)) / 4, abs=1e-6)
    expected = torch.tensor([[0, 1 / 2, 1 / 6], [0, 0, 1 / 3]], dtype=torch.float64)
    assert torch.allclose(terms.new.grad[:, 0, 0], expected, atol=1e-6)
