"""The diffu-GRPO loss, value and gradient, on two completions of three tokens worked out by hand.

epsilon = .5, beta = .1, advantages 2 and -1; the last token of row 1 comes after its EOS.

    ratio      1     2    .4        row 1:    2    .25   (ignored)
    A x ratio  2     4    .8                 -2   -.25
    A x clip   2     3    1                 -1.5  -.5
    J = min    2     3    .8                 -2   -.5          sum 3.3
    ref - new  0   ln 2   0                -ln 2    0
    k3         0  1-ln 2  0               ln 2-.5   0          sum .5

    loss = .1 x .5 - 3.3 = -3.25
    d loss / d new: -A ratio where min takes the unclipped branch, else 0; plus .1 (1 - exp(ref - new))
                 -2  -.1  -.8               2.05    0    0
"""

import math

import pytest
import torch

from d1ray.rl.diffu_grpo import diffu_grpo_loss

OLD = [[-1.0, -2.0, -0.5], [-3.0, -0.25, -1.0]]
RATIO = [[1.0, 2.0, 0.4], [2.0, 0.25, 1.0]]
AWAY = [[0.0, math.log(2), 0.0], [-math.log(2), 0.0, 0.0]]
SCORED = [[True, True, True], [True, True, False]]
ADVANTAGES = [2.0, -1.0]


def inputs(dtype=torch.float64):
    old = torch.tensor(OLD, dtype=dtype)
    new = (old + torch.tensor(RATIO, dtype=dtype).log()).requires_grad_()
    reference = new.detach() + torch.tensor(AWAY, dtype=dtype)
    return new, old, reference, torch.tensor(ADVANTAGES, dtype=dtype), torch.tensor(SCORED)


def one_token(ratio, advantage, epsilon=0.5):
    """Loss and d loss / d new of a single scored token without KL."""
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    loss = diffu_grpo_loss(new, torch.zeros_like(new), None, advantages, torch.tensor([[True]]), epsilon, 0.0)
    loss.total.backward()
    return loss, float(new.grad)


def test_the_loss_is_the_sum_worked_out_by_hand():
    assert float(diffu_grpo_loss(*inputs(), 0.5, 0.1).total.detach()) == pytest.approx(-3.25, abs=1e-12)


def test_the_gradient_is_the_one_worked_out_by_hand():
    new, *rest = inputs()
    diffu_grpo_loss(new, *rest, 0.5, 0.1).total.backward()
    expected = torch.tensor([[-2.0, -0.1, -0.8], [2.05, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(new.grad, expected, atol=1e-12)


def test_the_metrics_are_sums_over_scored_tokens():
    loss = diffu_grpo_loss(*inputs(), 0.5, 0.1)
    assert float(loss.kl) == pytest.approx(0.5)
    assert int(loss.clipped) == 2
    # |ln 1| + |ln 2| + |ln .4| + |ln 2| + |ln .25|
    assert float(loss.gap) == pytest.approx(4 * math.log(2) + math.log(2.5))


def test_metrics_carry_no_gradient():
    loss = diffu_grpo_loss(*inputs(), 0.5, 0.1)
    assert not (loss.kl.requires_grad or loss.gap.requires_grad or loss.clipped.requires_grad)


@pytest.mark.parametrize("poison", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_whatever_stands_after_the_eos_is_ignored(which, poison):
    given = list(inputs())
    with torch.no_grad():
        given[which][1, 2] = poison
    loss = diffu_grpo_loss(*given, 0.5, 0.1)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-3.25)
    assert float(loss.gap) == pytest.approx(4 * math.log(2) + math.log(2.5))
    assert given[0].grad[1].tolist() == pytest.approx([2.05, 0, 0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [
        (1.6, 1.0, True),
        (1.4, 1.0, False),
        (0.4, 1.0, False),  # a good token that became rarer may rise again
        (0.4, -1.0, True),
        (0.6, -1.0, False),
        (1.6, -1.0, False),  # a bad token that became likelier may fall again
        (1.6, 0.0, False),
        (0.4, 0.0, False),
    ],
)
def test_a_token_counts_as_clipped_exactly_when_its_gradient_is_cut(ratio, advantage, clipped):
    loss, gradient = one_token(ratio, advantage)
    assert bool(loss.clipped) == clipped
    assert gradient == pytest.approx(0.0 if clipped else -advantage * ratio)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_on_policy_the_gradient_is_the_whole_policy_gradient(advantage):
    # At ratio 1 both branches of the minimum are equal: the gradient is -A, not half of it.
    loss, gradient = one_token(1.0, advantage)
    assert float(loss.total.detach()) == pytest.approx(-advantage)
    assert gradient == pytest.approx(-advantage)


@pytest.mark.parametrize("away", [-3.0, -0.1, 0.0, 0.1, 3.0])
def test_the_kl_estimate_is_never_negative(away):
    new = torch.tensor([[-1.0]], dtype=torch.float64)
    loss = diffu_grpo_loss(new, new, new + away, torch.zeros(1), torch.tensor([[True]]), 0.5, 1.0)
    assert float(loss.kl) == pytest.approx(math.exp(away) - away - 1)
    assert float(loss.kl) >= 0


def test_the_mean_of_the_kl_estimate_over_the_policy_is_the_kl():
    # pi = (.5, .25, .25), reference = (.25, .25, .5): KL = .5 ln 2 + 0 - .25 ln 2 = .25 ln 2.
    policy, reference = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    mean = sum(
        float(policy[0, k])
        * float(
            diffu_grpo_loss(
                policy[:, [k]].log(),
                policy[:, [k]].log(),
                reference[:, [k]].log(),
                torch.zeros(1),
                torch.tensor([[True]]),
                0.5,
                1.0,
            ).kl
        )
        for k in range(3)
    )
    assert mean == pytest.approx(0.25 * math.log(2), abs=1e-6)


def test_without_beta_no_reference_is_needed():
    new, old, _, advantages, scored = inputs()
    loss = diffu_grpo_loss(new, old, None, advantages, scored, 0.5, 0.0)
    assert float(loss.total.detach()) == pytest.approx(-3.3)
    assert float(loss.kl) == 0


def test_without_beta_a_given_reference_changes_nothing():
    assert float(diffu_grpo_loss(*inputs(), 0.5, 0.0).total.detach()) == pytest.approx(-3.3)


def test_beta_without_reference_is_refused():
    new, old, _, advantages, scored = inputs()
    with pytest.raises(ValueError, match="needs reference log-probabilities"):
        diffu_grpo_loss(new, old, None, advantages, scored, 0.5, 0.1)
