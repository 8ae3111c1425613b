"""Proposals: a chunk at a time, as if all at once."""

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion import proposal
from d1ray.diffusion.decoding import DECODINGS
from d1ray.diffusion.proposal import propose

N = 50


def config_of(decoding, temperature, cfg_scale=0.0):
    return SamplerConfig(decoding=decoding, temperature=temperature, cfg_scale=cfg_scale)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_chunks_change_nothing(model, monkeypatch, decoding, temperature, cfg_scale):
    generator = torch.Generator().manual_seed(0)
    config = config_of(decoding, temperature, cfg_scale)
    hidden = [torch.randn(N, 32, generator=generator) for _ in range(2 if cfg_scale else 1)]
    uniforms = torch.rand(N, generator=generator, dtype=torch.float64) if temperature else None
    sizes, head = [], model.head
    monkeypatch.setattr(model, "head", lambda h: sizes.append(len(h)) or head(h))
    whole = propose(model, hidden, uniforms, config)
    assert set(sizes) == {N}
    sizes.clear()
    monkeypatch.setattr(proposal, "LOGITS_BYTES", 7 * 20 * 4)  # 7 positions of 20 logits in fp32
    parts = propose(model, hidden, uniforms, config)
    assert max(sizes) == 7 and sum(sizes) == N * len(hidden)
    assert parts.tokens.tolist() == whole.tokens.tolist()
    assert torch.allclose(parts.logps, whole.logps, atol=1e-6)
    assert torch.allclose(parts.confidence, whole.confidence, atol=1e-6)


def test_a_vocabulary_larger_than_a_chunk_is_done_position_by_position(model, monkeypatch):
    monkeypatch.setattr(proposal, "LOGITS_BYTES", 1)
    proposals = propose(model, [torch.ones(3, 32)], None, config_of("low_confidence", 0.0))
    assert len(proposals.tokens) == 3


@pytest.mark.parametrize("decoding", DECODINGS)
def test_confidences_are_of_the_whole_vocabulary_mask_token_included(model, decoding):
    # Whether the mask token could be proposed or not, what the other tokens' confidences say is the same.
    mask, generator = model.config.mask_token_id, torch.Generator().manual_seed(1)
    hidden = torch.randn(N, 32, generator=generator)
    proposals = propose(model, [hidden], None, config_of(decoding, 0.0))
    with torch.no_grad():
        logits = model.head(hidden)
    probabilities = logits.softmax(-1)
    allowed = logits.clone()
    allowed[:, mask] = -torch.inf
    assert proposals.tokens.tolist() == allowed.argmax(-1).tolist()
    proposed = probabilities[torch.arange(N), proposals.tokens]
    assert torch.allclose(proposals.logps, proposed.log(), atol=1e-5)
    largest = probabilities.topk(2, dim=-1).values
    expected = {
        "random": torch.zeros(N),
        "topk_margin": largest[:, 0] - largest[:, 1],
        "entropy": (probabilities * probabilities.log()).sum(-1),
        "entropy_bound": (probabilities * probabilities.log()).sum(-1),
    }.get(decoding, proposed)
    assert torch.allclose(proposals.confidence.float(), expected, atol=1e-5)
    assert (logits.argmax(-1) == mask).any()  # else the mask token would make no difference
