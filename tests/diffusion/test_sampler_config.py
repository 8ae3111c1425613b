"""Sampler settings: what is refused, and what to do about it."""

from typing import get_args

import pytest
from pydantic import ValidationError

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.decoding import DECODINGS


def test_the_defaults_are_d1s():
    assert SamplerConfig().model_dump() == {
        "gen_length": 256,
        "steps": 128,
        "block_length": 32,
        "temperature": 0.9,
        "decoding": "low_confidence",
        "schedule": "uniform",
        "threshold": 0.9,
        "factor": 1.0,
        "entropy_bound": 0.1,
        "position_temperature": 0.0,
        "cfg_scale": 0.0,
        "cache": "none",
    }


def test_every_policy_can_be_named():
    assert set(get_args(SamplerConfig.model_fields["decoding"].annotation)) == set(DECODINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gen_length": 60},
            "block_length=32 does not divide gen_length=60; choose a block_length that does",
        ),
        ({"steps": 12}, "steps=12 must be a multiple of the 8 block"),
        ({"steps": 512}, "steps=512 is more than gen_length=256, .*; choose fewer steps"),
        ({"threshold": 1.1}, "less than or equal to 1"),
        ({"cfg_scale": -1}, "greater than or equal to 0"),
        ({"cache": "both"}, "'none', 'prefix' or 'dual'"),
    ],
)
def test_impossible_combinations_are_one_clear_line(settings, message):
    with pytest.raises(ValidationError, match=message) as caught:
        SamplerConfig(**settings)
    assert len(caught.value.errors()) == 1
    assert "\n" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding": "threshold", "threshold": 0.5, "steps": 1000},  # steps are not its business
        {"schedule": "time", "steps": 512},  # Dream's later steps may commit nothing
        {"decoding": "entropy", "position_temperature": 0.5, "cache": "dual", "cfg_scale": 1.5},
        {"gen_length": 8, "block_length": 8, "steps": 3, "decoding": "random"},
        {"decoding": "random", "position_temperature": 1},
        {"decoding": "factor", "threshold": 0.5, "entropy_bound": 2},
    ],
)
def test_possible_combinations_survive_being_written_and_read(settings):
    config = SamplerConfig(**settings)
    assert SamplerConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize(
    "recipe",
    [
        {"decoding": "threshold", "threshold": 0.95},
        {"decoding": "factor", "factor": 2, "cache": "dual"},
        {"decoding": "entropy", "schedule": "time", "position_temperature": 0.5},  # Dream's
    ],
)
def test_a_recipes_decoding_can_be_switched_by_itself(recipe, decoding):
    assert SamplerConfig(**{**recipe, "decoding": decoding}).decoding == decoding
