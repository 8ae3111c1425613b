"""Proposals: the token each masked position would become, its log-probability and its confidence.

The mask token is never proposed, yet it keeps its probability: log-probabilities and confidences are of the
softmax over the whole vocabulary, as in LLaDA's and Dream's own samplers and in the likelihood.

Shapes: N masked positions, C of them in a chunk, d model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.categorical import draw
from d1ray.diffusion.decoding import DECODINGS, Prediction
from d1ray.models.model import DiffusionLM

LOGITS_BYTES = 32 * 1024**2  # of fp32 logits held at once; a chunk needs a few times this


@dataclass(frozen=True)
class Proposals:
    """For N masked positions: ``tokens [N]``, their ``logps [N]`` at T = 1 in fp32, ``confidence [N]``."""

    tokens: Tensor
    logps: Tensor
    confidence: Tensor


@torch.no_grad()
def propose(
    model: DiffusionLM, hidden: Sequence[Tensor], uniforms: Tensor | None, config: SamplerConfig
) -> Proposals:
    """Proposes a token at every position: the likeliest, or one drawn from softmax(logits / temperature).

    Args:
        model: its ``head`` projects hidden states to the vocabulary, a chunk of positions at a time.
        hidden: one ``[N, d]``; or two, with the prompt and without, for classifier-free guidance.
        uniforms: ``[N]`` fp64 in [0, 1); None at temperature 0.
        config: temperature, guidance and decoding policy.

    Raises:
        FloatingPointError: a logit is NaN or +inf, or all are -inf but the mask token's.
    """
    size = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
    decoding = DECODINGS[config.decoding]
    tokens, logps, confidence = [], [], []
    for start in range(0, len(hidden[0]), size):
        chunk = slice(start, start + size)
        prediction = predict(
            _guided_logits(model, [h[chunk] for h in hidden], config.cfg_scale),
            model.config.mask_token_id,
            None if uniforms is None else uniforms[chunk],
            config.temperature,
        )
        tokens.append(prediction.tokens)
        logps.append(prediction.logps)
        confidence.append(decoding.confidence(prediction))
    return Proposals(torch.cat(tokens), torch.cat(logps).float(), torch.cat(confidence))


def _guided_logits(model: DiffusionLM, hidden: Sequence[Tensor], scale: float) -> Tensor:
    """fp32 logits ``[C, V]``, free to be overwritten: u + (scale + 1) (c - u) of the conditional and the
    unconditional ones (LLaDA, arXiv 2502.09992, Appendix A.2)."""
    logits = model.head(hidden[0]).float()
    if len(hidden) == 1:
        return logits
    unconditional = model.head(hidden[1]).float()
    return logits.sub_(unconditional).mul_(scale + 1).add_(unconditional)


def predict(logits: Tensor, mask_id: int, uniforms: Tensor | None, temperature: float | Tensor) -> Prediction:
    """Draws from ``logits [C, V]`` without the mask token; overwrites them.

    Args:
        uniforms: ``[C]`` fp64 in [0, 1); None at temperature 0.
        temperature: of all positions, or each one's own ``[C, 1]``, none of them 0.

    Raises:
        FloatingPointError: a logit is NaN or +inf, or all are -inf but the mask token's.
    """
    mask_logit = logits[:, mask_id].clone()
    logits[:, mask_id] = -torch.inf
    top, best = logits.max(-1)
    logits -= top[:, None]
    mask_logit -= top
    weights = logits.exp()
    total = weights.sum(-1, dtype=torch.float64)  # 1 + the others: in fp32 near-certain positions would tie
    log_total = _logaddexp(total.log(), mask_logit.double())
    if not log_total.isfinite().all():  # one NaN or +inf is enough, a -inf is probability 0
        raise FloatingPointError("a logit is NaN or +inf, or none is finite; check its weights and dtype")
    if uniforms is None:
        tokens = best
    else:
        if isinstance(temperature, Tensor) or temperature != 1:
            weights = torch.div(logits, temperature, out=weights).exp_()
        tokens = draw(weights, uniforms)
    logps = logits.gather(1, tokens[:, None]).squeeze(1) - log_total
    logits[:, mask_id] = mask_logit
    return Prediction(logits, temperature, tokens, logps)


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)). ``torch.logaddexp`` rounds otherwise at the end of a tensor than before it, and a
    position's place among others must not tell."""
    return torch.maximum(a, b) + (a - b).abs().neg_().exp_().log1p_()
