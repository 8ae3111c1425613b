"""The diffu-GRPO loss, value and gradient, on two completions of three tokens worked out by hand.

epsilon = .5, beta = .1, advantages 2 and -1; the last token of row 1 comes after its EOS.

    ratio      1     2    .4        row 1:    2    .25   (ignored)
    A x ratio  2     4    .8                 -2   -.25
    A x clip   2     3    1                 -1.5  -.5
    J = min    2     3    .8                 -2   -.5          sum 3.3
    ref - new  0   ln 2   0                -ln 2    0
    k3         0  1-ln 2  0               ln 2-.5   0          sum .5

    loss = (.1 x .5 - 3.3) / 5 tokens = -.65
    5 x d loss / d new: -A ratio where min takes the unclipped branch, else 0; plus .1 (1 - exp(ref - new))
                 -2  -.1  -.8               2.05    0    0
"""

import math

import pytest
import torch

from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.diffu_grpo import DiffuGRPO

OLD = [[-1.0, -2.0, -0.5], [-3.0, -0.25, -1.0]]
RATIO = [[1.0, 2.0, 0.4], [2.0, 0.25, 1.0]]
AWAY = [[0.0, math.log(2), 0.0], [-math.log(2), 0.0, 0.0]]
SCORED = torch.tensor([[[True, True, True], [True, True, False]]])
ALGORITHM = DiffuGRPO(epsilon=0.5, beta=0.1)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)[None, None]  # [K=1, n=1, G, L]


def example(reference=True):
    old = tensor(OLD)
    new = (old + tensor(RATIO).log()).requires_grad_()
    return Terms(
        new=new,
        old=old,
        reference=new.detach() + tensor(AWAY) if reference else None,
        weights=SCORED[None].float(),
        scored=SCORED,
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=5, view_tokens=5),
    )


def test_the_loss_is_the_one_worked_out_by_hand():
    assert float(ALGORITHM.loss(example()).total.detach()) == pytest.approx(-0.65, abs=1e-12)


def test_the_gradient_is_the_one_worked_out_by_hand():
    terms = example()
    ALGORITHM.loss(terms).total.backward()
    expected = tensor([[-2.0, -0.1, -0.8], [2.05, 0.0, 0.0]]) / 5
    assert torch.allclose(terms.new.grad, expected, atol=1e-12)


def test_the_metrics_are_means_over_tokens():
    metrics = ALGORITHM.loss(example()).metrics
    assert float(metrics["kl"]) == pytest.approx(0.5 / 5)
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 5)


@pytest.mark.parametrize("poison", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("which", ["new", "old", "reference"])
def test_what_stands_at_unscored_tokens_is_ignored(which, poison):
    terms = example()
    with torch.no_grad():
        getattr(terms, which)[0, 0, 1, 2] = poison
    loss = ALGORITHM.loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-0.65, abs=1e-12)
    assert (5 * terms.new.grad[0, 0, 1]).tolist() == pytest.approx([2.05, 0, 0])


def test_without_beta_no_reference_is_needed():
    algorithm = DiffuGRPO(epsilon=0.5, beta=0)
    assert not algorithm.needs_reference
    assert float(algorithm.loss(example(reference=False)).total.detach()) == pytest.approx(-3.3 / 5)


def test_beta_without_reference_is_refused():
    with pytest.raises(ValueError, match="needs reference log-probabilities"):
        ALGORITHM.loss(example(reference=False))
