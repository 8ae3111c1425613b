"""The wd1 loss, value and gradient, on two completions of three tokens worked out by hand.

psi = 1, advantages ln 2 and -ln 2: exp(A) = 2 and 1/2. The last token of row 1 comes after its EOS.

    w+ = (2, 1/2) / 2.5 = (.8, .2)      w- = (.2, .8)      w- - w+ = (-.6, .6)
    s  = (-1 - 2 - .5, -3 - .25) = (-3.5, -3.25)
    loss = -.6 (-3.5) + .6 (-3.25) = .15
    d loss / d l = -.6 at the tokens of row 0, .6 at those of row 1

With psi = 2 the weights are (4, 1/4) / 4.25 = (16/17, 1/17): 15/17 takes the place of .6.
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.wd1 import WD1

LOGPS = [[-1.0, -2.0, -0.5], [-3.0, -0.25, math.nan]]
SCORED = torch.tensor([[True, True, True], [True, True, False]])


def example(copies=1):
    new = torch.tensor([LOGPS] * copies, dtype=torch.float64)[None].requires_grad_()  # [1, n, G, L]
    scored = SCORED.expand(copies, 2, 3)
    advantages = torch.tensor([[math.log(2), -math.log(2)]] * copies, dtype=torch.float64)
    totals = Totals(groups=copies, completions=2 * copies, tokens=5 * copies, view_tokens=5 * copies)
    return Terms(new, None, None, scored[None].float(), scored, advantages, totals)


def test_the_loss_and_its_gradient_are_the_ones_worked_out_by_hand():
    terms = example()
    loss = WD1().loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(0.15, abs=1e-6)
    assert torch.allclose(terms.new.grad, torch.tensor([[-0.6] * 3, [0.6, 0.6, 0]]).double(), atol=1e-6)


def test_psi_sharpens_the_weights():
    terms = example()
    loss = WD1(psi=2).loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(15 / 17 * (3.5 - 3.25), abs=1e-6)
    assert float(terms.new.grad[0, 0, 0, 0]) == pytest.approx(-15 / 17, abs=1e-6)


def test_the_softmax_is_over_the_group_and_groups_are_averaged():
    terms = example(copies=2)
    loss = WD1().loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(0.15, abs=1e-6)
    assert float(terms.new.grad[0, 1, 0, 0]) == pytest.approx(-0.3, abs=1e-6)


def test_the_metrics_are_the_two_weighted_log_likelihoods():
    metrics = WD1().loss(example()).metrics
    assert float(metrics["logp_raised"]) == pytest.approx(0.8 * -3.5 + 0.2 * -3.25)
    assert float(metrics["logp_lowered"]) == pytest.approx(0.2 * -3.5 + 0.8 * -3.25)


def test_the_estimators_weights_count():
    terms = example()
    halved = Terms(terms.new, None, None, terms.weights / 2, terms.scored, terms.advantages, terms.totals)
    assert float(WD1().loss(halved).total.detach()) == pytest.approx(0.075, abs=1e-6)
