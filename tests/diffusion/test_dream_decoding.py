"""One block of the whole length with the time schedule is Dream's own sampler, token for token.

The sampler below follows the description of Dream's: raw outputs shifted by one column, confidences of the
proposals, counts from falling times, one batch without padding.
"""

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample
from d1ray.models.dream import Dream

MASK = 1
PROMPTS = [[4, 11, 5, 9, 9, 2], [7, 3, 20, 29, 1, 8], [2, 2, 9, 13, 3, 8]]
POLICIES = ["entropy", "maskgit_plus", "topk_margin"]


@pytest.fixture
def make_quiet(make_dream):
    """``make_quiet(seed)``: a Dream that does not say the mask token."""

    def make(seed):
        model = make_dream(seed, vocab_size=30)
        with torch.no_grad():
            model.lm_head.weight[MASK] = 0
        return model

    return make


def confidence_of(policy, probabilities):
    """``[..., V]`` to ``[...]``."""
    ordered = probabilities.sort(-1, descending=True).values
    if policy == "maskgit_plus":
        return ordered[..., 0]
    if policy == "topk_margin":
        return ordered[..., 0] - ordered[..., 1]
    return (probabilities * torch.log(probabilities + 1e-10)).sum(-1)


def dreams_own(model, prompts, length, steps, policy):
    """Greedy decoding of equally long prompts. Returns completions and the steps that committed a token."""
    raw = Dream(model.config)  # the same weights without the shift that DiffusionLM takes back
    raw.shifted = False
    raw.load_state_dict(model.state_dict())
    x = torch.tensor([prompt + [MASK] * length for prompt in prompts])
    completion = torch.arange(x.shape[1]) >= len(prompts[0])
    times = torch.linspace(1, 1e-3, steps + 1)
    useful = 0
    for step in range(steps):
        masked = (x == MASK) & completion
        with torch.no_grad():
            outputs = raw(x)
        logits = torch.cat([outputs[:, :1], outputs[:, :-1]], dim=1)
        left = masked.sum() / len(x)
        share = 1 - times[step + 1] / times[step]
        count = int(left) if step == steps - 1 else int(left * share)
        if count:
            confidence = confidence_of(policy, logits.softmax(-1)).masked_fill(~masked, -torch.inf)
            chosen = torch.zeros_like(masked).scatter(1, confidence.topk(count).indices, True)
            assert (logits.argmax(-1)[chosen] != MASK).all()
            x = torch.where(chosen, logits.argmax(-1), x)
            useful += 1
    return x[:, len(prompts[0]) :].tolist(), useful


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("length", "steps"), [(16, 16), (16, 5), (13, 4), (12, 1), (10, 33), (7, 7)])
def test_dreams_sampler_token_for_token(make_quiet, policy, length, steps):
    config = SamplerConfig(
        gen_length=length,
        steps=steps,
        block_length=length,
        temperature=0,
        decoding=policy,
        schedule="time",
    )
    for seed in range(3):
        model = make_quiet(seed)
        samples = sample(model, PROMPTS, config, range(3))
        ids, useful = dreams_own(model, PROMPTS, length, steps, policy)
        assert samples.ids.tolist() == ids
        assert samples.forwards.tolist() == [useful] * 3
        assert (samples.step_map.max(-1).values == useful - 1).all()


def test_the_policies_do_differ(make_quiet):
    model = make_quiet(0)
    base = {"gen_length": 16, "steps": 16, "block_length": 16, "temperature": 0, "schedule": "time"}
    maps = {
        tuple(sample(model, PROMPTS, SamplerConfig(**base, decoding=p), range(3)).step_map.flatten())
        for p in POLICIES
    }
    assert len(maps) == 3


def test_rows_of_different_lengths_equal_each_alone(make_quiet):
    base = {"gen_length": 10, "steps": 5, "block_length": 10, "temperature": 0.7, "schedule": "time"}
    config = SamplerConfig(**base, decoding="entropy")
    model, prompts = make_quiet(1), [[5], [9, 8, 7, 6, 5], [12, 13]]
    together = sample(model, prompts, config, range(3))
    for row, prompt in enumerate(prompts):
        alone = sample(model, [prompt], config, [row])
        assert together.ids[row].tolist() == alone.ids[0].tolist()
        assert together.step_map[row].tolist() == alone.step_map[0].tolist()
