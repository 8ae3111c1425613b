"""Masking noise: its statistics, and that it is a function of its key alone."""

import math

import numpy as np
import pytest

from d1ray.diffusion.masked_loss import Demonstration, noised_inputs
from d1ray.diffusion.noise import forward_process, prompt_mask

EPS, ROWS, LENGTH = 1e-3, 4000, 50


@pytest.fixture(scope="module")
def noise():
    return forward_process(np.full(ROWS, LENGTH), LENGTH, EPS, 0, 0, 0)


def test_levels_are_uniform_between_eps_and_one(noise):
    levels, _ = noise
    assert levels.min() >= EPS
    assert levels.max() <= 1
    # 10 equal bins of [eps, 1]: chi-square of 9 degrees of freedom is below 27.88 with p = .999.
    counts = np.histogram(levels, bins=10, range=(EPS, 1))[0]
    assert ((counts - ROWS / 10) ** 2 / (ROWS / 10)).sum() < 27.88


def test_a_token_is_masked_with_its_rows_probability(noise):
    levels, masked = noise
    # Standardised by each row's binomial deviation, separately for high and low levels.
    for rows in (levels < 0.3, (levels >= 0.3) & (levels < 0.7), levels >= 0.7):
        t = levels[rows].astype(np.float64)
        excess = masked[rows].sum() - (t * LENGTH).sum()
        assert abs(excess) < 4 * math.sqrt((t * (1 - t)).sum() * LENGTH)


def test_every_position_is_masked_equally_often(noise):
    levels, masked = noise
    # Each position's count has the variance of 4,000 independent Bernoulli(1/2): deviation 31.6.
    assert np.abs(masked.sum(axis=0) - levels.sum()).max() < 4.5 * math.sqrt(ROWS / 4)


def test_weighting_by_one_over_t_counts_every_token_once(noise):
    levels, masked = noise
    # E[sum mask / t'] = L; its variance is L E[1/t' - 1] = 50 (ln 1000 - 1) = 295: the mean of 4,000 has .27.
    assert (masked.sum(axis=1) / levels).mean() == pytest.approx(LENGTH, abs=4 * 0.27)


def test_tokens_beyond_a_rows_length_are_never_masked():
    lengths = np.array([0, 3, 8])
    for step in range(50):
        _, masked = forward_process(lengths, 8, 1.0, 0, step)  # eps 1: every token within the length
        assert (masked == (np.arange(8) < lengths[:, None])).all()


def test_a_rows_noise_does_not_depend_on_the_rows_beside_it():
    levels, masked = forward_process(np.full(3, 8), 8, EPS, 0, 5)
    more_levels, more_masked = forward_process(np.full(7, 8), 8, EPS, 0, 5)
    assert (levels == more_levels[:3]).all()
    assert (masked == more_masked[:3]).all()


def test_workers_that_share_a_batch_draw_the_whole_batchs_noise():
    levels, masked = forward_process(np.full(5, 8), 8, EPS, 0, 5)
    for rank in range(2):
        rows = range(rank, 5, 2)
        own_levels, own_masked = forward_process(np.full(len(rows), 8), 8, EPS, 0, 5, rows=rows)
        assert (own_levels == levels[rank::2]).all()
        assert (own_masked == masked[rank::2]).all()


def test_strata_cover_the_levels_evenly_and_leave_them_uniform():
    levels, _ = forward_process(np.full(8, 4), 4, 0.0, 0, strata=8)
    assert (np.floor(levels * 8) == np.arange(8)).all()
    places = [forward_process(np.full(8, 4), 4, 0.0, seed, strata=8)[0] * 8 % 1 for seed in range(500)]
    # 4,000 uniform places within the strata: mean 1/2, deviation sqrt(1/12/4000) = .0046.
    assert np.mean(places) == pytest.approx(0.5, abs=4 * 0.0046)


@pytest.mark.parametrize("key", [(1, 5), (0, 6), (0, 5, 0)])
def test_another_seed_or_counter_gives_other_noise(key):
    levels, _ = forward_process(np.full(3, 8), 8, EPS, 0, 5)
    assert (levels != forward_process(np.full(3, 8), 8, EPS, *key)[0]).all()


def test_the_prompt_is_never_noised(model):
    prompts = [[4, 11, 5], [7]]
    completions = [[2, 3, 0, 0], [9, 8, 7, 0]]
    pairs = [Demonstration(*pair) for pair in zip(prompts, completions, strict=True)]
    ids, attention_mask, _, clean, masked, levels = noised_inputs(model, [[0], [1]], pairs, 1.0, 0, 3)
    assert ids.tolist() == [[4, 11, 5, 1, 1, 1, 1], [0, 0, 7, 1, 1, 1, 1]]  # eps 1 masks all the rest
    assert attention_mask.tolist() == [[1] * 7, [0, 0] + [1] * 5]
    assert clean.tolist() == completions
    assert masked.all()
    assert levels.tolist() == [[1] * 4] * 2


def test_noised_inputs_are_the_forward_process_applied(model):
    completions = [[2, 3, 4, 5, 6, 7, 8, 9]] * 5
    pairs = [Demonstration([4], completion) for completion in completions]
    ids, _, _, clean, masked, levels = noised_inputs(model, [[i] for i in range(5)], pairs, EPS, 7, 1, 2)
    expected_levels, expected = forward_process(np.full(5, 8), 8, EPS, 7, 1, 2)
    assert (masked.numpy() == expected).all()
    assert (levels.numpy() == expected_levels[:, None]).all()
    assert (ids[:, 1:].numpy() == np.where(expected, 1, clean.numpy())).all()
    assert 0 < expected.sum() < 40


def test_a_prompt_token_is_masked_with_the_given_probability():
    masks = np.array([prompt_mask(40, 0.15, 0, group, 0) for group in range(1000)])
    # 40,000 tokens: mean 6,000, deviation sqrt(40,000 x .15 x .85) = 71.4.
    assert abs(masks.sum() - 6000) < 4 * 71.4
    # Each of the 40 positions: mean 150, deviation 11.3.
    assert np.abs(masks.sum(axis=0) - 150).max() < 4.5 * 11.3


@pytest.mark.parametrize(("probability", "expected"), [(0.0, False), (1.0, True)])
def test_certain_prompt_masks_are_certain(probability, expected):
    assert (prompt_mask(1000, probability, 0, 1, 2) == expected).all()


def test_a_prompt_mask_is_keyed_by_seed_group_inner_update_and_rollout():
    keys = [(0, 3, 1), (1, 3, 1), (0, 4, 1), (0, 3, 2), (0, 3, 1, 0), (0, 3, 1, 1)]
    masks = {prompt_mask(200, 0.15, *key).tobytes() for key in keys}
    assert len(masks) == len(keys)
    assert (prompt_mask(200, 0.15, 0, 3, 1) == prompt_mask(200, 0.15, 0, 3, 1)).all()
