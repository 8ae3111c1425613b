"""Advantages worked out by hand; equal rewards give exactly 0, and what has no advantage is refused."""

import math

import numpy as np
import pytest

from d1ray.rl.advantage import ADVANTAGES, group_mean, group_mean_std, leave_one_out


def rewards(*rows):
    return np.array(rows, np.float32)


@pytest.fixture(params=ADVANTAGES)
def advantage(request):
    return ADVANTAGES[request.param]


def test_the_mean_is_subtracted():
    # Means 1/4 and 2.
    assert group_mean(rewards([1, 0, 0, 0], [3, 1, 2, 2])).tolist() == [
        [0.75, -0.25, -0.25, -0.25],
        [1, -1, 0, 0],
    ]


def test_only_mean_std_divides_by_the_standard_deviation():
    assert group_mean(rewards([20, 0])).tolist() == [[10, -10]]
    assert leave_one_out(rewards([20, 0])).tolist() == [[20, -20]]
    # Deviations 10 and -10 of 2 rewards: std = sqrt(200 / 1).
    assert group_mean_std(rewards([20, 0]))[0, 0] == pytest.approx(10 / (math.sqrt(200) + 1e-4))


def test_mean_std_on_four_rewards():
    # Mean 2, deviations 1, -1, 2, -2: std = sqrt(10 / 3).
    std = math.sqrt(10 / 3) + 1e-4
    assert group_mean_std(rewards([3, 1, 4, 0]))[0].tolist() == pytest.approx(
        [1 / std, -1 / std, 2 / std, -2 / std]
    )


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 1 against (0 + 0 + 2) / 3; 0 against (1 + 0 + 2) / 3; 2 against (1 + 0 + 0) / 3.
    assert leave_one_out(rewards([1, 0, 0, 2]))[0].tolist() == pytest.approx([1 / 3, -1, -1, 5 / 3])


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7, 1e-8, 123456.7, -0.3])
@pytest.mark.parametrize("size", [2, 3, 6, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # in fp64 .1 + .1 + .1 is not 3 x .1
def test_equal_rewards_give_exactly_zero(advantage, reward, size, dtype):
    assert (advantage(np.full((2, size), reward, dtype)) == 0).all()


def test_rewards_that_barely_differ_are_not_taken_for_equal(advantage):
    assert (advantage(rewards([1, np.nextafter(np.float32(1), np.float32(2))])) != 0).all()


def test_a_groups_advantages_sum_to_zero(advantage):
    values = np.random.default_rng(0).random((20, 6)).astype(np.float32)
    assert np.abs(advantage(values).sum(axis=1)).max() < 2e-6


def test_groups_do_not_touch_each_other(advantage):
    together = advantage(rewards([1, 0], [5, 9]))
    assert (together[0] == advantage(rewards([1, 0]))[0]).all()


def test_advantages_are_fp32_and_the_rewards_are_not_overwritten(advantage):
    values = rewards([1, 0])
    assert advantage(values).dtype == np.float32
    assert values.tolist() == [[1, 0]]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_one_has_nothing_to_be_compared_with(name):
    with pytest.raises(ValueError, match=f"'{name}' needs at least 2 completions a group, got 1"):
        ADVANTAGES[name](rewards([1], [2]))


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_place(advantage, reward):
    with pytest.raises(ValueError, match=rf"completion 2 in group 1 \(of 3\) is {reward}"):
        advantage(rewards([0, 1, 0], [1, 0, reward], [0, 0, reward]))
