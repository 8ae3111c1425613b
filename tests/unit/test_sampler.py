"""The sampler against LLaDA's algorithm written plainly, and against marginals that are known."""

import math

import numpy as np
import pytest
import torch

from d1ray.config import SamplerConfig
from d1ray.diffusion import sample
from d1ray.models import LLaDA

EOS, MASK = 0, 1
PROMPTS = [[4, 11, 5], [7], [2, 2, 9, 13, 3, 8], [19, 6], [4, 11, 5], [3, 14, 15, 9, 2]]


class Marginals(LLaDA):
    """Logits that depend on nothing but the completion's position: ``weights [L, V]`` are unnormalised."""

    def __init__(self, config, weights):
        super().__init__(config)
        self.logits = torch.tensor(weights, dtype=torch.float32).log()
        self.rows = []  # of each forward

    def hidden(self, input_ids, attention_mask=None, position_ids=None):
        self.rows.append(len(input_ids))
        positions = torch.arange(input_ids.shape[1]) - (input_ids.shape[1] - len(self.logits))
        return positions.clamp(min=0).float().expand(len(input_ids), -1)[..., None]

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


def counted(model):
    """Lets ``model`` note how many rows each forward has."""
    rows, hidden = [], model.hidden

    def noting(input_ids, *rest):
        rows.append(len(input_ids))
        return hidden(input_ids, *rest)

    model.hidden = noting
    return rows


def plain_llada(model, prompt, gen_length, steps, block_length):
    """LLaDA's greedy low-confidence sampling, one row, every forward a full one, no early exit.

    The mask token is no prediction. Returns ids and the step that committed each.
    """
    x = torch.tensor([prompt + [MASK] * gen_length])
    when = [-1] * gen_length
    blocks = gen_length // block_length
    steps_per_block, number = steps // blocks, 0
    for block in range(blocks):
        start = len(prompt) + block * block_length
        for step in range(steps_per_block):
            transfer = block_length // steps_per_block + (step < block_length % steps_per_block)
            with torch.no_grad():
                logits = model(x)[0]
            logits[:, MASK] = -math.inf
            probabilities = torch.softmax(logits, -1)
            candidates = []
            for position in range(start, start + block_length):
                if x[0, position] == MASK:
                    token = int(probabilities[position].argmax())
                    candidates.append((float(probabilities[position, token]), position, token))
            for _, position, token in sorted(candidates, reverse=True)[:transfer]:
                x[0, position] = token
                when[position - len(prompt)] = number
            number += 1
    return x[0, len(prompt) :].tolist(), when


def ended_at(eos, ids, when, block_length):
    """What a row that stops after the first block with an EOS looks like."""
    for end in range(block_length, len(ids), block_length):
        if eos in ids[end - block_length : end]:
            return ids[:end] + [eos] * (len(ids) - end), when[:end] + [-1] * (len(ids) - end)
    return ids, when


@pytest.mark.parametrize(
    ("gen_length", "steps", "block_length"),
    [(8, 8, 8), (8, 4, 8), (8, 3, 8), (6, 1, 6), (12, 12, 4), (12, 6, 4), (16, 6, 8), (6, 6, 1)],
)
def test_greedy_sampling_is_lladas_token_for_token(make_model, gen_length, steps, block_length):
    config = fixed(gen_length, steps, block_length, temperature=0)
    rows = ended = 0
    for seed, eos in enumerate([11, 16, 3, 18]):  # tokens these models like to say
        model = make_model(seed, eos_token_id=eos)
        samples = sample(model, PROMPTS, config, range(len(PROMPTS)))
        for row, prompt in enumerate(PROMPTS):
            ids, when = ended_at(
                eos, *plain_llada(model, prompt, gen_length, steps, block_length), block_length
            )
            assert samples.ids[row].tolist() == ids
            assert samples.step_map[row].tolist() == when
            assert int(samples.forwards[row]) == max(when) + 1
            rows, ended = rows + 1, ended + (-1 in when)
    assert 0 < ended < rows or gen_length == block_length  # both ends were seen


def test_each_step_commits_the_scheduled_number(tiny_config):
    # 16 tokens in 2 blocks of 8, 6 steps: 3 a block, which commit 3, 3 and 2.
    model = Marginals(tiny_config, [sure(2, 0.9)] * 16)
    samples = sample(model, PROMPTS, fixed(16, 6, 8), range(6))
    for row in samples.step_map.tolist():
        assert [row[:8].count(step) for step in range(3)] == [3, 3, 2]
        assert [row[8:].count(step) for step in range(3, 6)] == [3, 3, 2]
    assert samples.forwards.tolist() == [6] * 6


def test_threshold_commits_all_above_it_then_one_at_a_time(tiny_config):
    # Confidences .95 .5+ .92 .6: above .9 are positions 0 and 2; then .6, then the last.
    weights = [sure(2, 0.95), sure(3, 0.55), sure(4, 0.92), sure(2, 0.6)]
    model = Marginals(tiny_config, weights)
    config = fixed(4, 4, 4, temperature=0, decoding="threshold", threshold=0.9)
    samples = sample(model, [[7]], config, [0])
    assert samples.ids.tolist() == [[2, 3, 4, 2]]
    assert samples.step_map.tolist() == [[0, 2, 0, 1]]
    assert samples.forwards.tolist() == [3]


def test_threshold_may_need_more_steps_than_the_schedule_has(tiny_config):
    model = Marginals(tiny_config, [sure(2, 0.6)] * 4)
    config = fixed(4, 1, 4, temperature=0, decoding="threshold", threshold=0.9)
    assert sample(model, [[7]], config, [0]).forwards.tolist() == [4]


def test_rows_of_different_pace_keep_their_own_step_numbers(make_model):
    config = fixed(12, 12, 4, temperature=0, decoding="threshold", threshold=0.3)
    model = make_model(1)
    together = sample(model, PROMPTS, config, range(6))
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, [prompt], config, [row])
        assert together.step_map[row].tolist() == alone.step_map[0].tolist()
        assert int(together.forwards[row]) == int(alone.forwards[0]) == int(alone.step_map.max()) + 1
    assert len(set(together.forwards.tolist())) > 1


@pytest.mark.parametrize("decoding", ["low_confidence", "threshold"])
def test_a_row_does_not_depend_on_its_batch(make_model, decoding):
    model = make_model(2)
    config = fixed(12, 6, 4, temperature=1.0, decoding=decoding, threshold=0.2)
    seeds = [(0, 5, row) for row in range(6)]
    together = sample(model, PROMPTS, config, seeds)
    backwards = sample(model, PROMPTS[::-1], config, seeds[::-1])
    for row in range(6):
        alone = sample(model, [PROMPTS[row]], config, [seeds[row]])
        for other in (backwards.ids[5 - row], alone.ids[0]):
            assert together.ids[row].tolist() == other.tolist()
        assert together.step_map[row].tolist() == alone.step_map[0].tolist()
        assert torch.allclose(together.logps[row], alone.logps[0], atol=1e-5)


def test_other_seeds_give_other_completions(make_model):
    samples = sample(
        make_model(), [[4, 5]] * 20, fixed(8, 8, 8, temperature=1.0), [(0, i) for i in range(20)]
    )
    assert len({tuple(row) for row in samples.ids.tolist()}) == 20


def test_sampling_leaves_the_global_random_state_alone(model):
    before = torch.get_rng_state()
    sample(model, [[4]], fixed(4, 4, 4, temperature=1.0), [0])
    assert torch.equal(before, torch.get_rng_state())


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
    chi_square = sum((counts[t] - n * p) ** 2 / (n * p) for t, p in EXPECTED[temperature].items())
    assert chi_square < 16.27


def test_positions_of_one_step_are_drawn_independently(tiny_config):
    n = 6000
    model = Marginals(tiny_config, [WEIGHTS, WEIGHTS])
    samples = sample(model, [[7]] * n, fixed(2, 1, 2, temperature=1.0), [(1, i) for i in range(n)])
    counts = torch.bincount(samples.ids[:, 0] * 5 + samples.ids[:, 1], minlength=25).reshape(5, 5)
    expected = EXPECTED[1.0]
    # 16 cells of known probability: chi-square of 15 degrees of freedom is below 37.70 with p = .999.
    cells = [(float(counts[a, b]), n * expected[a] * expected[b]) for a in expected for b in expected]
    assert sum((count - mean) ** 2 / mean for count, mean in cells) < 37.70


def test_positions_that_wait_are_drawn_anew_at_each_step(tiny_config):
    # Two positions in two steps. The first commit is the more probable of two draws; the second position
    # is then drawn afresh: whatever was committed first, it follows the marginals.
    n = 6000
    model = Marginals(tiny_config, [WEIGHTS, WEIGHTS])
    samples = sample(model, [[7]] * n, fixed(2, 2, 2, temperature=1.0), [(2, i) for i in range(n)])
    last = samples.ids[samples.step_map == 1]
    counts = torch.bincount(last, minlength=5).tolist()
    assert sum((counts[t] - n * p) ** 2 / (n * p) for t, p in EXPECTED[1.0].items()) < 16.27


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 2), (0.49, 2), (0.51, 3), (1 - 2**-24, 3)])
def test_the_outermost_uniforms_still_draw_a_possible_token(tiny_config, monkeypatch, uniform, token):
    # Tokens 2 and 3 have a half each; the first, the mask and the last one are impossible.
    class Constant:
        def random(self, size, dtype):
            return np.full(size, uniform, dtype)

    monkeypatch.setattr("d1ray.rng.generator", lambda *_: Constant())
    model = Marginals(tiny_config, [[0.0, 9.0, 0.5, 0.5, 0.0]])
    assert sample(model, [[7]], fixed(1, 1, 1, temperature=1.0), [0]).ids.tolist() == [[token]]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_log_probabilities_are_those_of_temperature_one(tiny_config, temperature):
    model = Marginals(tiny_config, [WEIGHTS])
    samples = sample(model, [[7]] * 50, fixed(1, 1, 1, temperature=temperature), range(50))
    expected = [math.log(EXPECTED[1.0][int(token)]) for token in samples.ids[:, 0]]
    assert samples.logps[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_token_is_never_sampled_however_probable(tiny_config, temperature):
    model = Marginals(tiny_config, [[1e-6, 1.0, 1e-6, 1e-6, 1e-6]] * 8)
    samples = sample(model, [[7]] * 100, fixed(8, 4, 4, temperature=temperature), range(100))
    assert not (samples.ids == MASK).any()


def test_log_probabilities_are_of_the_context_at_the_time_of_the_commit(make_model):
    # Greedy, one token a step: replaying the step map with full forwards gives every log-probability.
    model, prompt = make_model(3), [4, 11, 5]
    samples = sample(model, [prompt], fixed(6, 6, 6, temperature=0), [0])
    x = torch.tensor([prompt + [MASK] * 6])
    for step in range(6):
        position = samples.step_map[0].tolist().index(step)
        with torch.no_grad():
            logits = model(x)[0, 3 + position]
        logits[MASK] = -math.inf
        token = int(samples.ids[0, position])
        assert float(samples.logps[0, position]) == pytest.approx(
            float(torch.log_softmax(logits, -1)[token]), abs=1e-5
        )
        x[0, 3 + position] = token


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


def test_finished_rows_leave_the_batch_while_the_others_go_on(make_model):
    config = fixed(12, 12, 4, temperature=1.0)
    model = make_model(1)
    rows = counted(model)
    samples = sample(model, PROMPTS, config, range(6))
    # Each step's forward holds the rows that are not done; the first one shares the two equal prompts.
    expected = [sum(1 for f in samples.forwards.tolist() if f > step) for step in range(12)]
    assert len(set(expected)) > 1
    assert rows == [5] + [n for n in expected[1:] if n]


def test_identical_prompts_share_the_first_forward_only(make_model):
    model = make_model(4)
    config = fixed(4, 4, 4, temperature=1.0)
    prompts = [[4, 11], [9], [4, 11], [9], [4, 11]]
    alone = [sample(model, [p], config, [seed]).ids[0].tolist() for seed, p in enumerate(prompts)]
    rows = counted(model)
    together = sample(model, prompts, config, range(5))
    assert rows == [2, 5, 5, 5]
    assert together.ids.tolist() == alone


def test_a_prompt_may_hold_the_eos_pad_token(make_model):
    # Left padding is known by length, not by token: [0, 4] is not [4].
    model, config = make_model(), fixed(4, 4, 4, temperature=0)
    samples = sample(model, [[EOS, 4], [5, 6, 7]], config, [0, 0])
    assert samples.ids[0].tolist() == sample(model, [[EOS, 4]], config, [0]).ids[0].tolist()
    assert torch.allclose(samples.logps[0], sample(model, [[EOS, 4]], config, [0]).logps[0], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("token", [EOS, 5])
def test_a_model_that_returns_nan_is_an_error(tiny_config, temperature, poison, token):
    model = Marginals(tiny_config, [[*WEIGHTS, 1.0]])
    model.logits[0, token] = poison
    with pytest.raises(FloatingPointError, match="NaN"):
        sample(model, [[7]], fixed(1, 1, 1, temperature=temperature), [0])


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([[4], []], [0, 1], "at least one token"),
        ([], [], "at least one prompt"),
        ([[4], [5]], [0], "got 1 for 2 prompts"),
    ],
)
def test_impossible_requests_are_refused(model, prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        sample(model, prompts, fixed(4, 4, 4), seeds)
