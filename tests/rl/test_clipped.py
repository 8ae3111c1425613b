"""The clipped surrogate and the KL estimates of one token, and what huge log-ratios do."""

import math

import pytest
import torch

from d1ray.rl.algorithm import Policies
from d1ray.rl.clipped import (
    LOG_RATIO_LIMIT,
    bounded_exp,
    clipped_surrogate,
    k2,
    k3,
    likelihood_ratio,
    log_ratio,
    mean_loss,
    truncated_importance,
)


def one_token(log_ratio, advantage, *epsilons):
    """J of a single token, whether it is clipped, and d J / d new."""
    new = torch.tensor([log_ratio], dtype=torch.float32, requires_grad=True)
    ratio = likelihood_ratio(new=new, old=torch.zeros(1))
    surrogate, clipped = clipped_surrogate(ratio, torch.tensor([advantage]), *(epsilons or (0.5,)))
    surrogate.sum().backward()
    return float(surrogate.detach()), bool(clipped), float(new.grad)


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
    _, found, gradient = one_token(math.log(ratio), advantage)
    assert found == clipped
    assert gradient == pytest.approx(0.0 if clipped else advantage * ratio)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_on_policy_the_gradient_is_the_whole_policy_gradient(advantage):
    # At ratio 1 both branches of the minimum are equal: the gradient is A, not half of it.
    surrogate, _, gradient = one_token(0.0, advantage)
    assert (surrogate, gradient) == pytest.approx((advantage, advantage))


def test_the_two_sides_of_the_clip_range_can_differ():
    assert one_token(math.log(1.4), 1.0, 0.2, 0.5)[2] == pytest.approx(1.4)
    assert one_token(math.log(0.7), -1.0, 0.2, 0.5)[2] == 0
    assert one_token(math.log(0.7), -1.0, 0.5, 0.2)[2] == pytest.approx(-0.7)


def test_a_completions_ratio_and_weight_are_of_its_log_probability_per_token():
    new, old, behaviour = torch.tensor([6.0]), torch.tensor([2.0]), torch.tensor([1.0])
    length = torch.tensor([2])
    assert log_ratio(new=new, old=old, length=length).tolist() == [2]
    assert likelihood_ratio(new=new, old=old, length=length).tolist() == pytest.approx([math.e**2])
    weight, _ = truncated_importance(Policies(new, old, None, behaviour), 9.0, length=length)
    assert weight.tolist() == pytest.approx([math.e**0.5])


def test_importance_weights_end_at_their_cap_and_say_so():
    old, behaviour = torch.tensor([math.log(3), math.log(1.5)]), torch.zeros(2)
    weight, metrics = truncated_importance(Policies(old, old, None, behaviour), 2.0)
    assert weight.tolist() == metrics["importance_mean"].tolist() == pytest.approx([2, 1.5])
    assert metrics["importance_truncated"].tolist() == [1, 0]


def test_what_the_old_policy_sampled_weighs_one():
    assert truncated_importance(Policies(torch.zeros(1), torch.zeros(1), None, None), None) == (1.0, {})


def test_a_mean_counts_what_it_is_over_and_nothing_else():
    # Two completions of 2 and 1 tokens, each with its own mean: ((1 + 3) / 2 + 5) / 2 = 3.5.
    values = torch.tensor([[1.0, 3.0], [5.0, math.nan]], requires_grad=True)
    over, lengths = torch.tensor([[True, True], [True, False]]), torch.tensor([[2], [1]])
    loss = mean_loss(values, {"twice": 2 * values}, over=over, each=lengths, total=2)
    loss.total.backward()
    assert float(loss.total.detach()) == 3.5
    assert float(loss.metrics["twice"]) == 7
    assert values.grad.tolist() == [[0.25, 0.25], [0.5, 0]]


@pytest.mark.parametrize("loss", [k2, k3, likelihood_ratio])
def test_log_probabilities_that_are_missing_are_named(loss):
    missing = "old" if loss is likelihood_ratio else "reference"
    with pytest.raises(ValueError, match=f"needs {missing} log-probabilities, and there are none"):
        loss(**{"new": torch.zeros(1), missing: None})


@pytest.mark.parametrize("away", [-3.0, -0.1, 0.0, 0.1, 3.0])
def test_k3_is_its_formula_and_never_negative(away):
    value = float(k3(torch.tensor(-1.0, dtype=torch.float64), torch.tensor(away - 1, dtype=torch.float64)))
    assert value == pytest.approx(math.exp(away) - away - 1)
    assert value >= 0


def test_the_mean_of_k3_over_the_policy_is_the_kl():
    # pi = (.5, .25, .25), reference = (.25, .25, .5): KL = .5 ln 2 + 0 - .25 ln 2 = .25 ln 2.
    policy, reference = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    mean = (policy * k3(policy.log(), reference.log())).sum()
    assert float(mean) == pytest.approx(0.25 * math.log(2), abs=1e-6)


def test_k2_pulls_as_hard_as_the_policy_is_away():
    new = torch.tensor([-1.0, -5.0], requires_grad=True)
    value = k2(new, torch.tensor([-4.0, -4.0]))
    value.sum().backward()
    assert value.tolist() == [4.5, 0.5]
    assert new.grad.tolist() == [3, -1]


def test_beyond_its_limit_exp_goes_on_as_its_tangent():
    e20 = math.exp(LOG_RATIO_LIMIT)
    x = torch.tensor([-1000.0, 0.0, 1.0, 19.0, 21.0, 1020.0], dtype=torch.float64, requires_grad=True)
    y = bounded_exp(x)
    y.sum().backward()
    slopes = [0, 1, math.e, math.exp(19), e20, e20]
    assert y.tolist() == pytest.approx([0, 1, math.e, math.exp(19), 2 * e20, 1001 * e20])
    assert x.grad.tolist() == pytest.approx(slopes)


@pytest.mark.parametrize("log_ratio", [89.0, 1e4, -1e4])  # exp(89) overflows fp32
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_huge_log_ratio_gives_a_finite_loss_and_no_push_in_the_wrong_direction(log_ratio, advantage):
    surrogate, _, gradient = one_token(log_ratio, advantage)
    assert math.isfinite(surrogate)
    # Good and far likelier, or bad and far rarer: nothing to do. Bad and far likelier: it still falls.
    if (log_ratio > 0) == (advantage > 0):
        assert gradient == 0
    else:
        assert 0 <= gradient * advantage < 1e9
        assert (gradient < 0) == (log_ratio > 0)


@pytest.mark.parametrize("away", [89.0, -89.0, 1e4, -1e4])
def test_a_policy_far_from_its_reference_has_a_finite_kl_that_pulls_back(away):
    new = torch.tensor([0.0], requires_grad=True)
    value = k3(new, torch.tensor([away]))
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert math.isfinite(float(new.grad))
    assert float(new.grad) * away < 0  # a step along -gradient goes towards the reference


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_nan_at_a_scored_token_shows_in_loss_and_gradient(which):
    new, old, reference = (torch.tensor([math.nan if which == i else -1.0]) for i in range(3))
    new.requires_grad_()
    ratio = likelihood_ratio(new=new, old=old)
    surrogate, _ = clipped_surrogate(ratio, torch.tensor([1.0]), 0.2)
    loss = mean_loss(0.1 * k3(new, reference) - surrogate, {}, over=torch.tensor([True]), total=1).total
    loss.backward()
    assert loss.isnan()
    assert new.grad.isnan().all()
