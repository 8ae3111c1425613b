"""The sampler against LLaDA's algorithm written plainly: one row, one position at a time, no shortcut."""

import math

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample

EOS, MASK = 0, 1
PROMPTS = [[4, 11, 5], [7], [2, 2, 9, 13, 3, 8], [19, 6], [4, 11, 5], [3, 14, 15, 9, 2]]


def fixed(gen_length, steps, block_length, **changes):
    return SamplerConfig(gen_length=gen_length, steps=steps, block_length=block_length, **changes)


def counted(model):
    """Lets ``model`` note how many rows each forward has."""
    rows, hidden = [], model.hidden

    def noting(input_ids, *rest, **more):
        rows.append(len(input_ids))
        return hidden(input_ids, *rest, **more)

    model.hidden = noting
    return rows


def plain_logits(model, prompt, completion, cfg_scale):
    """Logits ``[L, V]`` of the completion."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion]))[0, len(prompt) :]
        if cfg_scale:
            without = model(torch.tensor([[MASK] * len(prompt) + completion]))[0, len(prompt) :]
            logits = without + (cfg_scale + 1) * (logits - without)
    return logits


def plain_llada(model, prompt, gen_length, steps, block_length, cfg_scale=0.0):
    """LLaDA's greedy low-confidence sampling, every forward a full one, no early exit.

    The mask token is no prediction. Returns ids, the step that committed each, and log-probabilities.
    """
    x, when, logps = [MASK] * gen_length, [-1] * gen_length, [0.0] * gen_length
    steps_per_block, number = steps * block_length // gen_length, 0
    for start in range(0, gen_length, block_length):
        for step in range(steps_per_block):
            transfer = block_length // steps_per_block + (step < block_length % steps_per_block)
            logits = plain_logits(model, prompt, x, cfg_scale)
            candidates = []
            for position in range(start, start + block_length):
                if x[position] == MASK:
                    raw = logits[position].tolist()
                    token = max((t for t in range(len(raw)) if t != MASK), key=raw.__getitem__)
                    logp = raw[token] - math.log(sum(math.exp(value) for value in raw))
                    candidates.append((logp, position, token))
            for logp, position, token in sorted(candidates, reverse=True)[:transfer]:
                x[position], when[position], logps[position] = token, number, logp
            number += 1
    return x, when, logps


def ended_at(eos, ids, when, logps, block_length):
    """What a row that stops after the first block with an EOS looks like."""
    for end in range(block_length, len(ids), block_length):
        if eos in ids[end - block_length : end]:
            rest = len(ids) - end
            return ids[:end] + [eos] * rest, when[:end] + [-1] * rest, logps[:end] + [0.0] * rest
    return ids, when, logps


@pytest.mark.parametrize(
    ("gen_length", "steps", "block_length"),
    [(8, 8, 8), (8, 4, 8), (8, 3, 8), (6, 1, 6), (12, 12, 4), (12, 6, 4), (15, 6, 5), (6, 6, 1)],
)
def test_greedy_sampling_is_lladas_token_for_token(make_model, gen_length, steps, block_length):
    config = fixed(gen_length, steps, block_length, temperature=0)
    rows = ended = 0
    for seed, eos in enumerate([11, 16, 3, 18]):  # tokens these models like to say
        model = make_model(seed, eos_token_id=eos)
        samples = sample(model, PROMPTS, config, range(len(PROMPTS)))
        for row, prompt in enumerate(PROMPTS):
            plain = plain_llada(model, prompt, gen_length, steps, block_length)
            ids, when, logps = ended_at(eos, *plain, block_length)
            assert samples.ids[row].tolist() == ids
            assert samples.step_map[row].tolist() == when
            assert samples.logps[row].tolist() == pytest.approx(logps, abs=1e-4)
            assert int(samples.forwards[row]) == max(when) + 1
            rows, ended = rows + 1, ended + (-1 in when)
    assert 0 < ended < rows or gen_length == block_length  # both ends were seen


@pytest.mark.parametrize("cfg_scale", [0.5, 2.0])
def test_guidance_is_lladas_token_for_token(make_model, cfg_scale):
    config = fixed(12, 6, 4, temperature=0, cfg_scale=cfg_scale)
    model = make_model(1, eos_token_id=16)
    samples = sample(model, PROMPTS, config, range(6))
    for row, prompt in enumerate(PROMPTS):
        ids, when, logps = ended_at(16, *plain_llada(model, prompt, 12, 6, 4, cfg_scale), 4)
        assert samples.ids[row].tolist() == ids
        assert samples.step_map[row].tolist() == when
        assert samples.logps[row].tolist() == pytest.approx(logps, abs=1e-4)
        assert int(samples.forwards[row]) == 2 * (max(when) + 1)
    unguided = sample(model, PROMPTS, fixed(12, 6, 4, temperature=0), range(6))
    assert samples.ids.tolist() != unguided.ids.tolist()


def test_rows_of_different_pace_keep_their_own_step_numbers(make_model):
    config = fixed(12, 12, 4, temperature=0, decoding="threshold", threshold=0.3)
    model = make_model(1)
    together = sample(model, PROMPTS, config, range(6))
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, [prompt], config, [row])
        assert together.step_map[row].tolist() == alone.step_map[0].tolist()
        assert int(together.forwards[row]) == int(alone.forwards[0]) == int(alone.step_map.max()) + 1
    assert len(set(together.forwards.tolist())) > 1


def test_other_seeds_give_other_completions(make_model):
    seeds = [(0, i) for i in range(20)]
    samples = sample(make_model(), [[4, 5]] * 20, fixed(8, 8, 8, temperature=1.0), seeds)
    assert len({tuple(row) for row in samples.ids.tolist()}) == 20


def test_sampling_leaves_the_global_random_states_alone(model):
    before = torch.get_rng_state()
    sample(model, [[4]], fixed(4, 4, 4, temperature=1.0, position_temperature=1.0), [0])
    assert torch.equal(before, torch.get_rng_state())


def test_samples_can_take_part_in_a_gradient_and_bring_none(model):
    samples = sample(model, [[4]], fixed(4, 4, 4, temperature=1.0), [0])
    assert not samples.logps.requires_grad
    logps = model(samples.ids).log_softmax(-1).gather(2, samples.ids[..., None])[..., 0]
    (logps * samples.logps * (samples.step_map + samples.forwards)).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_a_bf16_model_is_sampled(make_model):
    model = make_model().bfloat16()
    for cache in ("none", "prefix", "dual"):
        samples = sample(model, PROMPTS, fixed(8, 4, 4, cache=cache), range(6))
        assert samples.logps.dtype == torch.float32 and samples.logps.isfinite().all()
        assert not (samples.ids == MASK).any()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_an_eos_ends_the_row_after_its_block_and_changes_nothing_before(make_model, cache):
    # The same weights, once with an EOS that ends rows and once with one that is never sampled.
    config = fixed(15, 15, 5, temperature=1.0, cache=cache)
    seeds = [(7, row) for row in range(6)]
    ending = sample(make_model(1, eos_token_id=3), PROMPTS, config, seeds)
    endless = sample(make_model(1, eos_token_id=MASK), PROMPTS, config, seeds)
    assert endless.forwards.tolist() == [15] * 6
    ends = []
    for row in range(6):
        ids, when = endless.ids[row].tolist(), endless.step_map[row].tolist()
        expected_ids, expected_when, _ = ended_at(3, ids, when, [], 5)
        assert ending.ids[row].tolist() == expected_ids
        assert ending.step_map[row].tolist() == expected_when
        ends.append(int(ending.forwards[row]))
    assert len(set(ends)) > 1 and max(ends) == 15


def test_finished_rows_leave_the_batch_while_the_others_go_on(make_model):
    config = fixed(12, 12, 4, temperature=1.0)
    model = make_model(1, eos_token_id=16)
    rows = counted(model)
    samples = sample(model, PROMPTS, config, range(6))
    # Each step's forward holds the rows that are not done; the first one shares the two equal prompts.
    expected = [sum(1 for f in samples.forwards.tolist() if f > step) for step in range(12)]
    assert len(set(expected)) > 1
    assert rows == [5] + [n for n in expected[1:] if n]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_identical_prompts_share_the_first_forward_only(make_model, cache, cfg_scale):
    model = make_model(4)
    config = fixed(4, 4, 4, temperature=1.0, cache=cache, cfg_scale=cfg_scale)
    prompts = [[4, 11], [9, 3], [4, 11], [9, 3], [4, 11], [5]]
    alone = [sample(model, [p], config, [seed]).ids[0].tolist() for seed, p in enumerate(prompts)]
    rows = counted(model)
    together = sample(model, prompts, config, range(6))
    # Without the prompt, rows differ by its length alone.
    assert rows == ([3, 2] + [6, 6] * 3 if cfg_scale else [3] + [6] * 3)
    assert together.ids.tolist() == alone


def test_a_prompt_may_hold_the_eos_pad_token(make_model):
    # Left padding is known by length, not by token: [0, 4] is not [4].
    model, config = make_model(), fixed(4, 4, 4, temperature=0)
    samples = sample(model, [[EOS, 4], [5, 6, 7], [4]], config, [0, 0, 0])
    for row, prompt in ((0, [EOS, 4]), (2, [4])):
        alone = sample(model, [prompt], config, [0])
        assert samples.ids[row].tolist() == alone.ids[0].tolist()
        assert torch.allclose(samples.logps[row], alone.logps[0], atol=1e-5)
    assert not torch.allclose(samples.logps[0], samples.logps[2], atol=1e-2)


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([[4], []], [0, 1], "at least one token"),
        ([], [], "at least one prompt"),
        ([[4], [5]], [0], "got 1 for 2 prompts"),
        ([[4], [5] * 61], [0, 1], "61 tokens and gen_length=4 .* max_sequence_length=64"),
    ],
)
def test_impossible_requests_are_refused(model, prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        sample(model, prompts, fixed(4, 4, 4), seeds)


def test_a_prompt_may_fill_the_context_but_for_the_completion(model):
    assert sample(model, [[5] * 60], fixed(4, 4, 4), [0]).ids.shape == (1, 4)
