"""Counter-based randomness: equal keys give equal numbers anywhere, unequal keys unrelated ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import d1ray
from d1ray.config.rng import generator


def test_equal_keys_give_equal_numbers():
    assert (generator(3, "sampler", 7, 1).random(8) == generator(3, "sampler", 7, 1).random(8)).all()


@pytest.mark.parametrize(
    "other",
    [
        (1, "sampler", 12, 3),
        (0, "sample", 12, 3),
        (0, "sampler", 12, 4),
        (0, "sampler", 1, 23),  # the digits alone are those of 12, 3
        (0, "sampler", 123),
        (0, "sampler", 12, 3, 0),
        (0, "sampler", 3, 12),
        (0, "sampler", -12, 3),
        (0, "sampler"),
    ],
)
def test_a_key_that_differs_anywhere_gives_other_numbers(other):
    assert (generator(0, "sampler", 12, 3).random(8) != generator(*other).random(8)).all()


def test_numpy_counters_key_like_python_integers():
    key = np.int64(5), "init", np.int32(2)
    assert generator(*key).random() == generator(5, "init", 2).random()


def test_the_global_numpy_state_is_neither_read_nor_moved():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = generator(0, "init", 0).random()
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(1)
    assert generator(0, "init", 0).random() == first


def test_another_process_with_other_hashes_draws_the_same_numbers():
    code = "from d1ray.config.rng import generator; print(repr(float(generator(4, 'sampler', 9).random())))"
    environment = os.environ | {
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": str(Path(d1ray.__path__[0]).parent),
    }
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert float(output.stdout) == generator(4, "sampler", 9).random()


def test_first_draws_of_successive_counters_are_uniform():
    # 10,000 generators, one draw each, 10 equal bins: chi-square of 9 degrees is below 27.88 with p = .999.
    draws = np.array([generator(0, "sampler", i).random() for i in range(10_000)])
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.88


def test_first_draws_of_successive_counters_are_uncorrelated():
    draws = np.array([generator(0, "sampler", i).random() for i in range(10_000)])
    correlation = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(10_000)
