"""Decoding policies on confidences small enough to rank by eye."""

import pytest
import torch

from d1ray.config import SamplerConfig
from d1ray.diffusion.decoding import POLICIES, low_confidence, threshold
from d1ray.diffusion.sampler import commit_schedule

NONE = float("-inf")  # not masked
CONFIG = SamplerConfig(gen_length=4, block_length=4, steps=4, threshold=0.8)


def commits(policy, confidence, quota):
    return policy(torch.tensor([confidence]), torch.tensor([quota]), CONFIG)[0].tolist()


@pytest.mark.parametrize(
    ("confidence", "quota", "committed"),
    [
        ([0.2, 0.9, NONE, 0.5], 1, [False, True, False, False]),
        ([0.2, 0.9, NONE, 0.5], 2, [False, True, False, True]),
        ([0.2, 0.9, NONE, 0.5], 4, [True, True, False, True]),  # never what is not masked
        ([0.5, 0.5, 0.5, 0.5], 2, [True, True, False, False]),  # ties: from the left
        ([0.0, NONE, 0.0, NONE], 1, [True, False, False, False]),  # a probability may underflow
    ],
)
def test_low_confidence_commits_the_most_confident(confidence, quota, committed):
    assert commits(low_confidence, confidence, quota) == committed


@pytest.mark.parametrize(
    ("confidence", "committed"),
    [
        ([0.81, 0.9, NONE, 0.5], [True, True, False, False]),
        ([0.2, 0.3, NONE, 0.1], [False, True, False, False]),  # at least one
        ([0.8, 0.7, 0.8, 0.6], [True, False, False, False]),  # strictly above, .8 is the threshold
        ([1.0, 1.0, 1.0, 1.0], [True, True, True, True]),
    ],
)
def test_threshold_commits_all_above_it_and_at_least_one(confidence, committed):
    assert commits(threshold, confidence, 3) == committed


def test_each_row_has_its_own_quota():
    confidence = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    committed = low_confidence(confidence, torch.tensor([1, 2]), CONFIG)
    assert committed.tolist() == [[False, False, True], [True, True, False]]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_commits_some_masked_position_and_only_masked_ones(policy):
    confidence = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    confidence[:, 1] = NONE
    confidence[100:, 2:] = NONE
    committed = policy(confidence, torch.ones(200, dtype=torch.long), CONFIG)
    assert committed.any(dim=1).all()
    assert not committed[confidence == NONE].any()


@pytest.mark.parametrize(
    ("block_length", "steps", "schedule"),
    [(32, 16, [2] * 16), (8, 3, [3, 3, 2]), (7, 4, [2, 2, 2, 1]), (4, 4, [1, 1, 1, 1]), (5, 1, [5])],
)
def test_the_schedule_spreads_a_block_over_its_steps_the_remainder_first(block_length, steps, schedule):
    assert commit_schedule(block_length, steps) == schedule
