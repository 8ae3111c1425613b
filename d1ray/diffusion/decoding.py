"""Decoding policies: which masked positions of the active block a denoising step commits.

A policy ranks the positions by a confidence and accepts the first few of the ranking. The confidence is
computed from the model's prediction at each position; how many are accepted follows from the schedule or,
for the adaptive policies, from the confidences themselves.

Shapes: R rows, K positions of a block, N masked positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d1ray.config.sampling import SamplerConfig


@dataclass(frozen=True)
class Prediction:
    """What the model predicts at N masked positions, and the token proposed for each.

    Attributes:
        logits: ``[N, V]`` fp32, up to a constant per position; the mask token's included.
        temperature: the proposals', or each one's own ``[N, 1]``, none of them 0.
        tokens: ``[N]`` the proposals; never the mask token.
        logps: ``[N]`` their log-probabilities at temperature 1, in fp64: near certainty they differ by less
            than fp32 can tell.
    """

    logits: Tensor
    temperature: float | Tensor
    tokens: Tensor
    logps: Tensor

    def tempered(self) -> Tensor:
        """Logits ``[N, V]`` over the temperature; at temperature 0 as they are."""
        if not isinstance(self.temperature, Tensor) and self.temperature in (0, 1):
            return self.logits
        return self.logits / self.temperature


def probability(prediction: Prediction) -> Tensor:
    """The proposal's probability at temperature 1 (LLaDA, Fast-dLLM)."""
    return prediction.logps.exp()


def tempered_probability(prediction: Prediction) -> Tensor:
    """The proposal's tempered probability (Dream's maskgit_plus)."""
    logits = prediction.tempered()
    proposed = logits.gather(1, prediction.tokens[:, None])
    largest = logits.max(-1, keepdim=True).values
    return (proposed - largest).double().exp().squeeze(1) / _total(logits, largest)


def margin(prediction: Prediction) -> Tensor:
    """How far the largest tempered probability is above the second (Dream's topk_margin)."""
    logits = prediction.tempered()
    largest, second = logits.topk(2, dim=-1).values.unbind(-1)
    return -(second - largest).double().expm1() / _total(logits, largest[:, None])


def _total(logits: Tensor, largest: Tensor) -> Tensor:
    """Sum of exp(logits - largest) in fp64: 1 + the others, however small."""
    return (logits - largest).exp_().sum(-1, dtype=torch.float64)


def negative_tempered_entropy(prediction: Prediction) -> Tensor:
    """sum p log(p + 1e-10) of the tempered probabilities (Dream's entropy)."""
    p = prediction.tempered().softmax(-1)
    return torch.linalg.vecdot(p, (p + 1e-10).log_())


def negative_entropy(prediction: Prediction) -> Tensor:
    """sum p log p at temperature 1, in nats."""
    return -torch.special.entr(prediction.logits.softmax(-1)).sum(-1)


def indifferent(prediction: Prediction) -> Tensor:
    """The same for every position: the ranking is left to chance (LLaDA's random remasking)."""
    return torch.zeros_like(prediction.logps)


def scheduled(ranked: Tensor, quota: Tensor, config: SamplerConfig) -> Tensor:
    """As many as the schedule says."""
    return quota


def above_threshold(ranked: Tensor, quota: Tensor, config: SamplerConfig) -> Tensor:
    """Every confidence of at least ``config.threshold`` (Fast-dLLM, arXiv 2505.22618, Section 3.3)."""
    return (ranked >= config.threshold).sum(-1)


def within_factor(ranked: Tensor, quota: Tensor, config: SamplerConfig) -> Tensor:
    """Ranks r = 1, 2, ... whose confidence is at least 1 - f / (r + 1) (Fast-dLLM, Section 3.3): the bound
    rises with r, so none is accepted behind one that fails.

    Where only the last masked position of a block fails, Fast-dLLM's code commits it all the same; this does
    not.
    """
    ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    return (ranked >= 1 - config.factor / (ranks + 1)).sum(-1)


def within_entropy_bound(ranked: Tensor, quota: Tensor, config: SamplerConfig) -> Tensor:
    """The longest run of least entropies whose sum less the largest is within ``config.entropy_bound``, which
    limits their joint dependence (EB-sampler, arXiv 2505.24857)."""
    smaller = F.pad((-ranked).cumsum(-1)[:, :-1], (1, 0))  # [R, K] the sum over the ranks before
    return ((smaller <= config.entropy_bound) & ranked.isfinite()).sum(-1)


@dataclass(frozen=True)
class Decoding:
    """A decoding policy.

    Attributes:
        confidence: from a ``Prediction`` to finite confidences ``[N]``.
        accept: from a row's confidences ranked from high to low ``[R, K]``, -inf where nothing is masked, and
            the scheduled number of positions ``[R]``, to the number of ranks accepted ``[R]``. Less than one
            counts as one.
    """

    confidence: Callable[[Prediction], Tensor]
    accept: Callable[[Tensor, Tensor, SamplerConfig], Tensor]


DECODINGS: dict[str, Decoding] = {
    "low_confidence": Decoding(probability, scheduled),
    "random": Decoding(indifferent, scheduled),
    "maskgit_plus": Decoding(tempered_probability, scheduled),
    "topk_margin": Decoding(margin, scheduled),
    "entropy": Decoding(negative_tempered_entropy, scheduled),
    "threshold": Decoding(probability, above_threshold),
    "factor": Decoding(probability, within_factor),
    "entropy_bound": Decoding(negative_entropy, within_entropy_bound),
}


def draws_positions(config: SamplerConfig) -> bool:
    """Whether chance has a part in the ranking; never in that of adaptive decoding."""
    return config.decoding == "random" or (config.scheduled and config.position_temperature > 0)


def is_random(config: SamplerConfig) -> bool:
    """Whether completions of one prompt differ by their seeds."""
    return config.temperature > 0 or draws_positions(config)


def choose(
    confidence: Tensor, masked: Tensor, quota: Tensor, uniforms: Tensor | None, config: SamplerConfig
) -> Tensor:
    """The positions to commit: bool ``[R, K]``, at least one masked position of every row that has one.

    Args:
        confidence: ``[R, K]``, of any value where nothing is masked. Ties go to the left.
        masked: ``[R, K]`` bool.
        quota: ``[R]`` positions that the schedule commits.
        uniforms: ``[R, K]`` fp64 in [0, 1), where ``draws_positions(config)``. With them the ranking is drawn
            without replacement in proportion to softmax(confidence / position_temperature), as the order of
            Gumbel-perturbed confidences (arXiv 1903.06059).
    """
    if uniforms is not None:
        gumbel = -(-uniforms.clamp(min=2**-54).log()).log()
        confidence = confidence / (config.position_temperature or 1) + gumbel
    ranked, order = confidence.masked_fill(~masked, -torch.inf).sort(dim=-1, descending=True, stable=True)
    count = DECODINGS[config.decoding].accept(ranked, quota, config).clamp(min=1)
    accepted = torch.arange(masked.shape[1], device=masked.device) < count[:, None]
    return torch.zeros_like(masked).scatter(1, order, accepted) & masked
