"""The sampler on a model whose marginals are known: what it commits, when, and how often."""

import math
from itertools import permutations

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample
from d1ray.models.llada import LLaDA

EOS, MASK = 0, 1


class Marginals(LLaDA):
    """Logits that depend on nothing but the completion's position: ``weights [L, V]`` are unnormalised."""

    def __init__(self, config, weights):
        super().__init__(config)
        self.logits = torch.tensor(weights, dtype=torch.float32).log()
        self.rows = []  # of each forward

    def hidden(self, input_ids, attention_mask=None, position_ids=None, *, at, **cached):
        self.rows.append(len(input_ids))
        return (at - (input_ids.shape[1] - len(self.logits))).float()[..., None]

    def head(self, hidden):
        return self.logits[hidden[..., 0].long()]


def fixed(gen_length, steps, block_length, **changes):
    return SamplerConfig(gen_length=gen_length, steps=steps, block_length=block_length, **changes)


def sure(token, probability=1.0, vocabulary=6):
    """Weights of one position: ``token`` has the probability, token 5 the rest."""
    weights = [0.0] * vocabulary
    weights[5] = 1 - probability
    weights[token] = probability
    return weights


def chi_square(counts, expected):
    return sum((counts[key] - mean) ** 2 / mean for key, mean in expected.items())


def test_each_step_commits_the_scheduled_number(tiny_config):
    # 16 tokens in 2 blocks of 8, 6 steps: 3 a block, which commit 3, 3 and 2.
    model = Marginals(tiny_config, [sure(2, 0.9)] * 16)
    samples = sample(model, [[7]] * 4, fixed(16, 6, 8), range(4))
    for row in samples.step_map.tolist():
        assert [row[:8].count(step) for step in range(3)] == [3, 3, 2]
        assert [row[8:].count(step) for step in range(3, 6)] == [3, 3, 2]
    assert samples.forwards.tolist() == [6] * 4


def test_steps_that_commit_nothing_are_not_taken(tiny_config):
    # Dream's times with 8 steps for 3 tokens: 1 - s/t is .33 at the sixth step and .498 at the seventh, whose
    # shares of 3 are just below 1, and 1; the last step commits the other two.
    model = Marginals(tiny_config, [sure(2, 0.9)] * 3)
    samples = sample(model, [[7]], fixed(3, 8, 3, schedule="time"), [0])
    assert sorted(samples.step_map[0].tolist()) == [0, 1, 1]
    assert samples.forwards.tolist() == [2] and len(model.rows) == 2


def test_threshold_commits_all_that_reach_it_then_one_at_a_time(tiny_config):
    # Confidences .95 .55 .92 .6: positions 0 and 2 reach .9; then .6, then the last.
    weights = [sure(2, 0.95), sure(3, 0.55), sure(4, 0.92), sure(2, 0.6)]
    model = Marginals(tiny_config, weights)
    config = fixed(4, 4, 4, temperature=0, decoding="threshold", threshold=0.9)
    samples = sample(model, [[7]], config, [0])
    assert samples.ids.tolist() == [[2, 3, 4, 2]]
    assert samples.step_map.tolist() == [[0, 2, 0, 1]]
    assert samples.forwards.tolist() == [3]


def test_an_adaptive_policy_does_not_ask_for_steps(tiny_config):
    model = Marginals(tiny_config, [sure(2, 0.6)] * 4)
    config = SamplerConfig(gen_length=4, block_length=4, temperature=0, decoding="threshold")
    assert sample(model, [[7]], config, [0]).forwards.tolist() == [4]


def test_ties_go_to_the_lower_token_and_to_the_left(tiny_config):
    model = Marginals(tiny_config, [[0.0, 0.0, 2.0, 1.0, 2.0]] * 4)
    samples = sample(model, [[7]], fixed(4, 4, 4, temperature=0), [0])
    assert samples.ids.tolist() == [[2, 2, 2, 2]]
    assert samples.step_map.tolist() == [[0, 1, 2, 3]]


# eos 1, mask 10 (never to be sampled), then 2, 3 and 4 parts: of 10 at T = 1; squared, of 30 at T = 1/2.
WEIGHTS = [1.0, 10.0, 2.0, 3.0, 4.0]
EXPECTED = {
    1.0: {0: 0.1, 2: 0.2, 3: 0.3, 4: 0.4},
    0.5: {0: 1 / 30, 2: 4 / 30, 3: 9 / 30, 4: 16 / 30},
}


@pytest.mark.parametrize("temperature", EXPECTED)
def test_tokens_follow_the_tempered_marginals(tiny_config, temperature):
    n = 6000
    model = Marginals(tiny_config, [WEIGHTS])
    samples = sample(model, [[7]] * n, fixed(1, 1, 1, temperature=temperature), [(0, i) for i in range(n)])
    counts = torch.bincount(samples.ids[:, 0], minlength=5).tolist()
    assert counts[MASK] == 0
    # Chi-square of 3 degrees of freedom is below 16.27 with p = .999.
    assert chi_square(counts, {token: n * p for token, p in EXPECTED[temperature].items()}) < 16.27


def test_positions_of_one_step_are_drawn_independently(tiny_config):
    n = 6000
    model = Marginals(tiny_config, [WEIGHTS, WEIGHTS])
    samples = sample(model, [[7]] * n, fixed(2, 1, 2, temperature=1.0), [(1, i) for i in range(n)])
    counts = torch.bincount(samples.ids[:, 0] * 5 + samples.ids[:, 1], minlength=25).tolist()
    expected = EXPECTED[1.0]
    # 16 cells of known probability: chi-square of 15 degrees of freedom is below 37.70 with p = .999.
    cells = {5 * a + b: n * expected[a] * expected[b] for a in expected for b in expected}
    assert chi_square(counts, cells) < 37.70


def test_positions_that_wait_are_drawn_anew_at_each_step(tiny_config):
    # Two positions in two steps. The first commit is the more probable of two draws; the second position
    # is then drawn afresh: whatever was committed first, it follows the marginals.
    n = 6000
    model = Marginals(tiny_config, [WEIGHTS, WEIGHTS])
    samples = sample(model, [[7]] * n, fixed(2, 2, 2, temperature=1.0), [(2, i) for i in range(n)])
    last = samples.ids[samples.step_map == 1]
    counts = torch.bincount(last, minlength=5).tolist()
    assert chi_square(counts, {token: n * p for token, p in EXPECTED[1.0].items()}) < 16.27


@pytest.mark.parametrize("position_temperature", [0.25, 1.0])
def test_positions_are_drawn_without_replacement_by_their_confidence(tiny_config, position_temperature):
    # Three positions, one a step: the order follows softmax(confidence / temperature), one after the other.
    n, confidences = 6000, [0.9, 0.6, 0.3]
    model = Marginals(tiny_config, [sure(2, 0.9), sure(2, 0.6), [0.0, 0.0, 0.3, 0.25, 0.25, 0.2]])
    config = fixed(3, 3, 3, temperature=0, position_temperature=position_temperature)
    samples = sample(model, [[7]] * n, config, [(3, i) for i in range(n)])
    steps = [tuple(row) for row in samples.step_map.tolist()]
    weights = [math.exp(c / position_temperature) for c in confidences]
    counts, expected = {}, {}
    for order in permutations(range(3)):
        a, b, c = (weights[position] for position in order)
        step_map = tuple(order.index(position) for position in range(3))
        counts[step_map] = steps.count(step_map)
        expected[step_map] = n * a / (a + b + c) * b / (b + c)
    assert chi_square(counts, expected) < 20.52  # 5 degrees of freedom, p = .999
    assert samples.ids.unique().tolist() == [2]


def test_random_remasking_is_uniform_over_subsets_whatever_the_confidence(tiny_config):
    n = 6000
    model = Marginals(tiny_config, [sure(2, 0.99), sure(2, 0.6), sure(2, 0.8), sure(2, 0.9)])
    config = fixed(4, 2, 4, temperature=0, decoding="random")
    samples = sample(model, [[7]] * n, config, [(4, i) for i in range(n)])
    first = (samples.step_map == 0).long() @ torch.tensor([8, 4, 2, 1])
    counts = torch.bincount(first, minlength=16).tolist()
    pairs = {value: n / 6 for value in (12, 10, 9, 6, 5, 3)}
    assert sum(counts[pair] for pair in pairs) == n
    assert chi_square(counts, pairs) < 20.52  # 5 degrees of freedom, p = .999


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_log_probabilities_are_those_of_temperature_one_over_the_whole_vocabulary(tiny_config, temperature):
    model = Marginals(tiny_config, [WEIGHTS])
    samples = sample(model, [[7]] * 50, fixed(1, 1, 1, temperature=temperature), range(50))
    expected = [math.log(WEIGHTS[token] / 20) for token in samples.ids[:, 0].tolist()]
    assert samples.logps[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_the_mask_token_is_never_sampled_however_probable(tiny_config, temperature):
    # Beside the mask token everything else underflows in fp32; it is sampled by its own proportions.
    model = Marginals(tiny_config, [[1.0, 1.0, 1.0, 2.0]] * 4)
    model.logits[:, MASK] = 300.0
    samples = sample(model, [[7]] * 400, fixed(4, 2, 4, temperature=temperature), range(400))
    assert set(samples.ids.unique().tolist()) == ({3} if temperature == 0 else {0, 2, 3})
    counts = torch.bincount(samples.ids.flatten()).tolist()
    assert temperature == 0 or counts[3] > 1.5 * counts[2]
    assert samples.logps.tolist() == [[pytest.approx(-300, abs=1)] * 4] * 400


def test_a_block_with_an_eos_ends_the_row_without_further_forwards(tiny_config):
    # Block 1 (positions 4-7) holds an EOS at 5; 6 and 7 still get their tokens, block 2 is never denoised.
    tokens = [2, 3, 4, 2, 3, EOS, 4, 2, 3, 3, 3, 3]
    model = Marginals(tiny_config, [sure(token) for token in tokens])
    samples = sample(model, [[7]], fixed(12, 12, 4, temperature=0), [0])
    assert samples.ids.tolist() == [tokens[:8] + [EOS] * 4]
    assert samples.step_map[0, 8:].tolist() == [-1] * 4
    assert samples.logps[0, 8:].tolist() == [0] * 4
    assert samples.forwards.tolist() == [8]
    assert model.rows == [1] * 8


def test_a_completion_of_nothing_but_eos_takes_one_block(tiny_config):
    model = Marginals(tiny_config, [sure(EOS)] * 12)
    samples = sample(model, [[7], [8, 9]], fixed(12, 6, 4), [0, 1])
    assert samples.ids.tolist() == [[EOS] * 12] * 2
    assert samples.step_map.tolist() == [[0, 0, 1, 1] + [-1] * 8] * 2
    assert samples.logps.tolist() == [[0.0] * 12] * 2
    assert samples.forwards.tolist() == [2, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("token", [EOS, MASK, 5])
def test_a_model_that_returns_nan_is_an_error(tiny_config, temperature, poison, token):
    model = Marginals(tiny_config, [[*WEIGHTS, 1.0]])
    model.logits[0, token] = poison
    with pytest.raises(FloatingPointError, match="NaN"):
        sample(model, [[7]], fixed(1, 1, 1, temperature=temperature), [0])
