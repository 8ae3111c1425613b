"""Inverse-CDF draws: exact where sums are exact, and safe where they are not."""

import numpy as np
import pytest
import torch

from d1ray.diffusion.categorical import draw

LAST = 1 - 2**-53  # the largest uniform


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, 10, 99, 1000])
def test_the_outcome_is_where_the_cdf_passes_the_uniform(size):
    # Whole weights: every sum is exact, so the outcome is known exactly, at the steps of the CDF too.
    generator = np.random.default_rng(size)
    weights = generator.integers(0, 4, size).astype(np.float32)
    weights[generator.integers(size)] += 1
    cdf = weights.cumsum()
    uniforms = np.concatenate([generator.random(200), cdf[:-1] / cdf[-1], [0, LAST]])
    uniforms = uniforms[uniforms < 1]
    expected = np.searchsorted(cdf, uniforms * cdf[-1], side="right")
    rows = torch.from_numpy(np.tile(weights, (len(uniforms), 1)))
    assert draw(rows, torch.from_numpy(uniforms)).tolist() == expected.tolist()


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.3, 0.7, LAST])
@pytest.mark.parametrize("seed", range(3))
def test_an_impossible_outcome_is_never_drawn(uniform, seed):
    # Few outcomes are possible, of weights from 1e-38 to 1: sums and CDFs round everywhere.
    generator = np.random.default_rng(seed)
    weights = np.zeros((200, 5000), dtype=np.float32)
    for row in weights:
        places = generator.integers(0, 5000, 5)
        row[places] = 10.0 ** generator.uniform(-38, 0, 5)
    outcomes = draw(torch.from_numpy(weights), torch.full((200,), uniform, dtype=torch.float64))
    assert (weights[np.arange(200), outcomes] > 0).all()


def test_the_largest_uniform_stays_within_the_vocabulary():
    # 1000 is not a multiple of a segment, and an fp32 sum may round up.
    weights = torch.from_numpy(np.random.default_rng(0).random((2000, 1000), dtype=np.float32))
    assert draw(weights, torch.full((2000,), LAST, dtype=torch.float64)).max() == 999


def test_small_weights_of_a_large_vocabulary_are_not_lost():
    # In fp32 a CDF would stand still behind the first outcome: it rounds to multiples of 2^-23 there, and
    # 300 of the others together are less than half of that.
    size, small, n = 126_464, 2.0**-34, 64
    weights = torch.full((1, size), small)
    weights[0, 0], weights[0, 1:1000] = 1, 0
    rest = small * (size - 1000)
    shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # of the others' mass
    outcomes = draw(weights.expand(n, -1), (1 + shares * rest) / (1 + rest))
    assert (outcomes - (1000 + shares * (size - 1000))).abs().max() <= 1
    assert draw(weights, torch.tensor([0.999], dtype=torch.float64)).tolist() == [0]
