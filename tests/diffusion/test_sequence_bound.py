"""The Monte-Carlo bound on a completion's log-likelihood, against enumeration of all masks."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from d1ray.diffusion.sequence_bound import masked_sets, sequence_bound
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig

PROMPT, COMPLETION = [4, 5], [6, 7, 8]


@pytest.fixture(scope="module")
def model():
    config = LLaDAConfig(
        d_model=16,
        n_layers=2,
        n_heads=2,
        mlp_hidden_size=24,
        max_sequence_length=16,
        vocab_size=12,
        mask_token_id=3,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = initialise(LLaDA(config), 0)
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, so that masks matter
            parameter.mul_(3)
    return model.eval()


def exact(model):
    """Every mask of every size, one forward pass each."""
    total, length = 0.0, len(COMPLETION)
    for size in range(1, length + 1):
        sets = list(combinations(range(length), size))
        for masked in sets:
            ids = [*PROMPT, *(3 if i in masked else token for i, token in enumerate(COMPLETION))]
            with torch.no_grad():
                logps = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            value = sum(float(logps[len(PROMPT) + i, COMPLETION[i]]) for i in masked)
            total += length / size * value / len(sets) / length
    return total


def test_the_mean_over_many_samples_is_the_sum_over_all_masks(model):
    estimates = [sequence_bound(model, PROMPT, COMPLETION, 60, seed) for seed in range(60)]
    error = np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    assert 0 < error < 0.05 * abs(exact(model))
    assert abs(np.mean(estimates) - exact(model)) < 4 * error


def test_one_token_needs_no_sampling(model):
    with torch.no_grad():
        logps = model(torch.tensor([[4, 5, 3]]))[0, -1].log_softmax(-1)
    assert sequence_bound(model, PROMPT, [7], 128, 0) == pytest.approx(float(logps[7]), abs=1e-5)


def test_where_nothing_is_known_the_bound_is_uniform_and_exact(model):
    blank = LLaDA(model.config).eval()
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    assert sequence_bound(blank, PROMPT, COMPLETION, 5, 0) == pytest.approx(-3 * math.log(12), abs=1e-5)


def test_the_rows_of_a_forward_pass_do_not_matter_and_seeds_do(model):
    whole = sequence_bound(model, PROMPT, COMPLETION, 16, 0, 3, rows=16)
    assert sequence_bound(model, PROMPT, COMPLETION, 16, 0, 3, rows=5) == pytest.approx(whole, abs=1e-5)
    assert sequence_bound(model, PROMPT, COMPLETION, 16, 0, 4) != pytest.approx(whole, abs=1e-5)


def test_every_count_and_every_position_is_masked_equally_often():
    masked = np.concatenate([masked_sets(4, 50, seed) for seed in range(400)])
    counts = np.bincount(masked.sum(axis=1), minlength=5)
    assert counts[0] == 0
    assert np.abs(counts[1:] / len(masked) - 1 / 4).max() < 0.01
    assert np.abs(masked.mean(axis=0) - (1 + 2 + 3 + 4) / 16).max() < 0.015


@pytest.mark.parametrize(("prompt", "completion"), [([4], []), ([4] * 10, [5] * 7)])
def test_what_does_not_fit_is_an_error(model, prompt, completion):
    with pytest.raises(ValueError, match=r"expected 1 to"):
        sequence_bound(model, prompt, completion, 4, 0)
