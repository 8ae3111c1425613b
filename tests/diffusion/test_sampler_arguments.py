"""What ``sample`` takes as prompts and seeds, and what it refuses with one clear line."""

import numpy as np
import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample

CONFIG = SamplerConfig(gen_length=4, steps=4, block_length=4, temperature=1.0)
ROWS = [[4, 11, 5], [4, 11, 5], [9, 3, 2]]
PROMPTS = {
    "lists": ROWS,
    "tuples": tuple(map(tuple, ROWS)),
    "arrays": [np.array(row, np.int32) for row in ROWS],
    "an array": np.array(ROWS),
    "tensors": [torch.tensor(row) for row in ROWS],
    "a tensor": torch.tensor(ROWS, dtype=torch.int32),
    "lists of scalars": [[np.int64(t) for t in ROWS[0]], list(torch.tensor(ROWS[1])), ROWS[2]],
}
SEEDS = {
    "tuples": [(0, 5), (0, 6), (0, 7)],
    "lists, as JSON has them": [[0, 5], [0, 6], [0, 7]],
    "an array": np.array([[0, 5], [0, 6], [0, 7]]),
    "a tensor": torch.tensor([[0, 5], [0, 6], [0, 7]]),
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_prompts_of_any_integer_type_are_the_same_and_share_their_first_forward(model, prompts):
    expected = sample(model, ROWS, CONFIG, range(3))
    rows, hidden = [], model.hidden
    model.hidden = lambda ids, *rest, **more: rows.append(len(ids)) or hidden(ids, *rest, **more)
    samples = sample(model, prompts, CONFIG, range(3))
    assert rows == [2, 3, 3, 3]
    assert samples.ids.tolist() == expected.ids.tolist()
    assert torch.equal(samples.logps, expected.logps)


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
def test_seeds_may_be_tuples_or_lists(model, seeds):
    expected = sample(model, ROWS, CONFIG, SEEDS["tuples"])
    assert sample(model, ROWS, CONFIG, seeds).ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize(
    "seeds", [[7, 8, 9], range(7, 10), np.arange(7, 10), torch.arange(7, 10), [[7], 8, (9,)]]
)
def test_seeds_may_be_integers(model, seeds):
    expected = sample(model, ROWS, CONFIG, [(7,), (8,), (9,)])
    assert sample(model, ROWS, CONFIG, seeds).ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize(
    ("prompts", "seeds", "error", "message"),
    [
        ([4, 11], [0, 1], TypeError, "prompt 0 must be a sequence of token ids; got 4"),
        (torch.tensor([4, 11]), [0, 1], TypeError, "prompt 0 must be a sequence of token ids; got 4"),
        (4, [0], TypeError, "prompts must be a sequence of token sequences; got 4"),
        (["12"], [0], TypeError, "prompt 0 must be a sequence of token ids; got '12'"),
        ([[4], [4.5, 2.0]], [0, 1], TypeError, r"prompt 1 must be .* ids; got \[4.5, 2.0\]"),
        (torch.tensor([[4.0, 2.0]]), [0], TypeError, r"prompt 0 must be .* ids; got \[4.0, 2.0\]"),
        ([[4, 2], [3, 20]], [0, 1], ValueError, "token 20 of prompt 1 is outside the vocabulary of 20"),
        ([[4, -1]], [0], ValueError, "token -1 of prompt 0 is outside the vocabulary of 20"),
        ([[4]], 0, TypeError, "seeds must be a sequence, one for each prompt; got 0"),
        ([[4]], [0.5], TypeError, "seed 0 must be an integer or a sequence of integers; got 0.5"),
        ([[4]], [[0, 1.0]], TypeError, r"seed 0 must be .*; got \[0, 1.0\]"),
        ([[4]], [()], ValueError, "seed 0 is empty"),
    ],
)
def test_anything_else_is_refused(model, prompts, seeds, error, message):
    with pytest.raises(error, match=message):
        sample(model, prompts, CONFIG, seeds)


@pytest.mark.parametrize(
    ("used", "unused"),
    [
        (
            {"decoding": "threshold", "threshold": 0.2},
            {"position_temperature": 1, "schedule": "time", "factor": 2},
        ),
        ({"decoding": "random"}, {"position_temperature": 1, "threshold": 0.2, "entropy_bound": 3}),
    ],
)
def test_a_setting_that_the_decoding_does_not_use_changes_nothing(model, used, unused):
    shape = {"gen_length": 4, "steps": 4, "block_length": 4, "temperature": 1.0}
    plain = sample(model, ROWS, SamplerConfig(**shape, **used), range(3))
    more = sample(model, ROWS, SamplerConfig(**shape, **used, **unused), range(3))
    assert plain.step_map.tolist() == more.step_map.tolist()
    assert torch.equal(plain.logps, more.logps)
