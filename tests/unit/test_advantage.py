"""Advantages: reward minus the group's mean, and nothing else."""

import numpy as np
import pytest

from d1ray.rl.advantage import group_mean


def rewards(*rows):
    return np.array(rows, np.float32)


def test_an_advantage_is_the_reward_minus_its_groups_mean():
    # Means 1/4 and 2.
    assert group_mean(rewards([1, 0, 0, 0], [3, 1, 2, 2])).tolist() == [
        [0.75, -0.25, -0.25, -0.25],
        [1, -1, 0, 0],
    ]


def test_advantages_are_not_divided_by_the_standard_deviation():
    assert group_mean(rewards([20, 0])).tolist() == [[10, -10]]


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7, 1e-8, 123456.7, -0.3])
@pytest.mark.parametrize("size", [3, 6, 7])
def test_equal_rewards_give_exactly_zero(reward, size):
    assert (group_mean(rewards([reward] * size)) == 0).all()


def test_rewards_that_barely_differ_are_not_taken_for_equal():
    assert (group_mean(rewards([1, np.nextafter(np.float32(1), np.float32(2))])) != 0).all()


def test_a_groups_advantages_sum_to_zero():
    values = np.random.default_rng(0).random((20, 6)).astype(np.float32)
    assert np.abs(group_mean(values).sum(axis=1)).max() < 1e-6


def test_groups_do_not_touch_each_other():
    together = group_mean(rewards([1, 0], [5, 9]))
    assert (together[0] == group_mean(rewards([1, 0]))[0]).all()


def test_the_rewards_are_not_overwritten():
    values = rewards([1, 0])
    group_mean(values)
    assert values.tolist() == [[1, 0]]
