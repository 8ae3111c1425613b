"""How many positions each step commits."""

from fractions import Fraction

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.schedule import commit_counts, time_counts, uniform_counts


@pytest.mark.parametrize(
    ("masks", "steps", "counts"),
    [(32, 16, [2] * 16), (8, 3, [3, 3, 2]), (7, 4, [2, 2, 2, 1]), (4, 4, [1, 1, 1, 1]), (5, 1, [5])],
)
def test_the_uniform_schedule_spreads_a_block_over_its_steps_the_remainder_first(masks, steps, counts):
    assert uniform_counts(masks, steps) == counts


@pytest.mark.parametrize(
    ("masks", "steps", "counts"),
    [
        # Times 1, .50050, .001: .49950 of 8 is 3; the rest at the end.
        (8, 2, [3, 5]),
        # Times 1, .75025, .50050, .25075, .001: .24975 x 8 = 1.998; .33289 x 7 = 2.33; .49900 x 5 = 2.495.
        (8, 4, [1, 2, 2, 3]),
        (3, 8, [0, 0, 0, 0, 0, 0, 1, 2]),
        (5, 1, [5]),
    ],
)
def test_the_time_schedule_commits_the_share_that_the_noise_level_falls_by(masks, steps, counts):
    assert time_counts(masks, steps) == counts


@pytest.mark.parametrize(("masks", "steps", "rounds"), [(1000, 9, True), (1000, 37, True), (256, 128, False)])
def test_the_time_schedule_rounds_as_fp32_tensors_do(masks, steps, rounds):
    # Dream multiplies fp32 tensors step by step. Of 1000 masks, .999 / 9 is a whole number at every step but
    # for rounding, and there exact arithmetic gives other counts.
    times = torch.linspace(1, 1e-3, steps + 1)
    counts, exact = [], []
    for step in range(steps - 1):
        left = torch.tensor(masks - sum(counts)) / 1
        counts.append(int(left * (1 - times[step + 1] / times[step])))
        t, s = (1 - Fraction(999, 1000) * i / steps for i in (step, step + 1))
        exact.append(int((masks - sum(exact)) * (1 - s / t)))
    assert time_counts(masks, steps) == [*counts, masks - sum(counts)]
    assert (counts != exact) == rounds


def test_steps_are_shared_among_the_blocks_and_empty_ones_left_out():
    assert commit_counts(SamplerConfig(gen_length=16, block_length=8, steps=6)) == [3, 3, 2]
    config = SamplerConfig(gen_length=6, block_length=3, steps=16, schedule="time")
    assert commit_counts(config) == [1, 2]
