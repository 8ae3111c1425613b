"""The noise of a row is its own, for every decoding policy and cache.

Its logits depend on the batch's shape by rounding alone. In fp32, and with these seeds, that
changes no token.
"""

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.decoding import DECODINGS
from d1ray.diffusion.sampler import sample

PROMPTS = [[4, 11, 5], [7], [2, 2, 9, 13, 3, 8], [19, 6], [4, 11, 5], [3, 14, 15, 9, 2]]
SEEDS = [(0, 5, row) for row in range(6)]
CACHES = ["none", "prefix", "dual"]
# Limits low enough that a step commits several positions, high enough that rows go at different paces.
LIMITS = {"threshold": 0.2, "factor": 2.4, "entropy_bound": 2.5}
EOS = 3  # which the model says now and then


def config_of(decoding, cache, **changes):
    limit = {decoding: LIMITS[decoding]} if decoding in LIMITS else {}
    shape = {"gen_length": 12, "steps": 6, "block_length": 4, "temperature": 1.0}
    return SamplerConfig(**shape, decoding=decoding, cache=cache, **limit, **changes)


def assert_same(samples, row, other, other_row):
    assert samples.ids[row].tolist() == other.ids[other_row].tolist()
    assert samples.step_map[row].tolist() == other.step_map[other_row].tolist()
    assert int(samples.forwards[row]) == int(other.forwards[other_row])
    assert torch.allclose(samples.logps[row], other.logps[other_row], atol=1e-5)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_row_does_not_depend_on_its_batch(make_model, decoding, cache):
    model, config = make_model(2, eos_token_id=EOS), config_of(decoding, cache)
    together = sample(model, PROMPTS, config, SEEDS)
    backwards = sample(model, PROMPTS[::-1], config, SEEDS[::-1])
    pair = sample(model, [PROMPTS[2], PROMPTS[5]], config, [SEEDS[2], SEEDS[5]])
    assert_same(together, 2, pair, 0)
    assert_same(together, 5, pair, 1)
    for row in range(6):
        assert_same(together, row, backwards, 5 - row)
        assert_same(together, row, sample(model, [PROMPTS[row]], config, [SEEDS[row]]), 0)
    assert together.ids[0].tolist() != together.ids[4].tolist()  # the same prompt, another seed


@pytest.mark.parametrize("decoding", LIMITS)
def test_the_limits_of_these_tests_let_rows_go_at_different_paces(make_model, decoding):
    samples = sample(make_model(2, eos_token_id=1), PROMPTS, config_of(decoding, "none"), SEEDS)
    assert len(set(samples.forwards.tolist())) > 1
    assert 3 < max(samples.forwards.tolist()) <= 12


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "changes", [{"cfg_scale": 1.0}, {"position_temperature": 0.5}, {"schedule": "time", "steps": 15}]
)
def test_nor_with_guidance_drawn_positions_or_dreams_times(make_model, cache, changes):
    shape = {"gen_length": 12, "steps": 6, "block_length": 4, "temperature": 0.7}
    config = SamplerConfig(**{**shape, "cache": cache, **changes})
    model = make_model(3, eos_token_id=EOS)
    together = sample(model, PROMPTS, config, SEEDS)
    for row in range(6):
        assert_same(together, row, sample(model, [PROMPTS[row]], config, [SEEDS[row]]), 0)


def test_equal_seeds_and_prompts_give_equal_completions_side_by_side(make_model):
    samples = sample(make_model(), [[4, 5]] * 3, config_of("low_confidence", "none"), [1, 1, 2])
    assert_same(samples, 0, samples, 1)
    assert samples.ids[0].tolist() != samples.ids[2].tolist()


def test_a_seed_may_be_a_number_or_a_tuple_of_it(make_model):
    samples = sample(make_model(), [[4, 5]] * 2, config_of("low_confidence", "none"), [8, (8,)])
    assert_same(samples, 0, samples, 1)
