"""pass@k, majority vote and their intervals, against enumeration and simulation."""

from itertools import combinations

import numpy as np
import pytest

from d1ray.evaluation.samples import counted_ks, interval, majority, pass_at
from d1ray.run.summary import wilson


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_completion():
    for right in range(6):
        completions = [True] * right + [False] * (5 - right)
        for k in range(1, 6):
            subsets = list(combinations(completions, k))
            assert pass_at(k, [right], 5) == [pytest.approx(sum(map(any, subsets)) / len(subsets))]


@pytest.mark.parametrize(
    ("parsed", "correct", "right"),
    [
        (["7", "8", "8"], [True, False, False], False),
        (["7", "8", "7"], [True, False, True], True),
        (["7", "8"], [True, False], True),  # of equals the first
        (["8", "7"], [False, True], False),
        ([None, None, "7"], [False, False, True], True),  # no answer is no vote
        ([None, None], [False, False], False),
    ],
)
def test_the_answer_given_most_often_is_judged(parsed, correct, right):
    assert majority(parsed, correct) is right


def test_powers_of_two_and_all_samples_are_reported():
    assert [counted_ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_of_one_sample_the_interval_is_wilson_s():
    assert interval([1.0] * 30 + [0.0] * 70, 1) == pytest.approx(wilson(30, 100))
    assert interval([0.0] * 9, 1) == wilson(0, 9)
    assert interval([1.0], 4) == wilson(1, 1)


def test_more_samples_of_the_same_verdict_tell_no_more_about_the_problems():
    assert interval([1.0] * 30 + [0.0] * 70, 64) == pytest.approx(interval([1.0] * 30 + [0.0] * 70, 1))


@pytest.mark.parametrize(
    "spread", [0.3, 3.0, 1000.0]
)  # problems that are all or nothing, mixed, or all alike
def test_the_interval_covers_the_mean_nineteen_times_in_twenty(spread):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        difficulty = rng.beta(0.3 * spread, 0.7 * spread, size=60)
        low, high = interval((rng.binomial(8, difficulty) / 8).tolist(), 8)
        covered += low <= 0.3 <= high
    assert 930 <= covered <= 975
