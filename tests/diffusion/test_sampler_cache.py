"""The prefix and dual caches against a plain loop: one row, its own cache, one pass at a time."""

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample
from d1ray.models.cache import KVCache

MASK = 1
PROMPTS = [[4, 11, 5], [7], [2, 2, 9, 13, 3, 8], [19, 6], [3, 14, 15, 9, 2]]
LENGTH, BLOCK = 12, 4


@pytest.fixture(params=["llada", "dream"])
def network(request, make_model, make_dream):
    if request.param == "llada":
        return make_model(2, eos_token_id=MASK)
    return make_dream(5, eos_token_id=MASK)


def plain_cached(model, prompt, kind, limit):
    """Greedy decoding with a cache. ``limit`` is a threshold, or a number of tokens a step.

    Returns ids, the step of each, and log-probabilities.
    """
    x = torch.tensor([prompt + [MASK] * LENGTH])
    when, logps, step = [-1] * LENGTH, [0.0] * LENGTH, 0
    for start in range(len(prompt), len(prompt) + LENGTH, BLOCK):
        at = torch.arange(start, start + BLOCK)[None]
        window = torch.arange(start, x.shape[1])[None] if kind == "prefix" else at
        cache = KVCache()
        while (x[0, at[0]] == MASK).any():
            with torch.no_grad():
                if cache.filled:
                    hidden = model.hidden(x, at=at, cache=cache, window=window)
                else:
                    hidden = model.hidden(x, at=at, cache=cache)
                logits = model.head(hidden)[0]
            log_probabilities = logits.log_softmax(-1)
            log_probabilities[:, MASK] = -torch.inf
            best, token = log_probabilities.max(-1)
            ranked = sorted(
                ((float(best[k]), -k) for k in range(BLOCK) if x[0, start + k] == MASK), reverse=True
            )
            if isinstance(limit, int):
                count = limit
            else:
                count = max(1, sum(torch.tensor(logp).exp().item() >= limit for logp, _ in ranked))
            for logp, minus_k in ranked[:count]:
                x[0, start - minus_k] = token[-minus_k]
                when[start - minus_k - len(prompt)] = step
                logps[start - minus_k - len(prompt)] = logp
            step += 1
    return x[0, len(prompt) :].tolist(), when, logps


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("limit", [1, 2, 0.3])
def test_rows_with_caches_equal_each_computed_alone(network, kind, limit):
    shape = {"gen_length": LENGTH, "block_length": BLOCK, "temperature": 0, "cache": kind}
    if isinstance(limit, int):
        config = SamplerConfig(**shape, steps=LENGTH // limit)
    else:
        config = SamplerConfig(**shape, decoding="threshold", threshold=limit)
    samples = sample(network, PROMPTS, config, range(5))
    for row, prompt in enumerate(PROMPTS):
        ids, when, logps = plain_cached(network, prompt, kind, limit)
        assert samples.ids[row].tolist() == ids
        assert samples.step_map[row].tolist() == when
        assert samples.logps[row].tolist() == pytest.approx(logps, abs=1e-4)
    if limit == 0.3:
        assert len(set(samples.forwards.tolist())) > 1  # rows were in different blocks
    exact = sample(network, PROMPTS, config.model_copy(update={"cache": "none"}), range(5))
    assert not torch.equal(exact.logps, samples.logps)  # the caches did go stale


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_a_cache_that_is_always_fresh_changes_nothing(network, kind):
    # One step a block: every pass enters a block and is full.
    config = SamplerConfig(gen_length=LENGTH, steps=3, block_length=BLOCK, temperature=1.0)
    exact = sample(network, PROMPTS, config, range(5))
    cached = sample(network, PROMPTS, config.model_copy(update={"cache": kind}), range(5))
    assert exact.ids.tolist() == cached.ids.tolist()
    assert torch.allclose(exact.logps, cached.logps, atol=1e-5)


def test_in_one_block_of_the_whole_length_the_two_caches_are_one(network):
    config = SamplerConfig(gen_length=LENGTH, steps=6, block_length=LENGTH, temperature=1.0, cache="prefix")
    prefix = sample(network, PROMPTS, config, range(5))
    dual = sample(network, PROMPTS, config.model_copy(update={"cache": "dual"}), range(5))
    assert prefix.ids.tolist() == dual.ids.tolist()
    assert torch.allclose(prefix.logps, dual.logps, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "windows"), [("none", [16] * 6), ("prefix", [16, 12, 16, 8, 16, 4]), ("dual", [16, 4] * 3)]
)
def test_a_pass_embeds_only_its_window(make_model, kind, windows):
    # A prompt of 4 and 3 blocks of 4, 2 steps each: the first pass in a block is full.
    model, seen = make_model(eos_token_id=MASK), []
    model.model.transformer.wte.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    config = SamplerConfig(gen_length=LENGTH, steps=6, block_length=BLOCK, cache=kind)
    sample(model, [[4, 11, 5, 2]] * 2, config, [0, 1])
    assert seen == windows
