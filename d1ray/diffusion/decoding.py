"""Decoding policies: which masked positions of the active block a denoising step commits.

A policy is a function of the confidences ``[R, K]`` (K block positions; -inf where nothing is
masked) and of the number of positions the fixed schedule would commit, ``quota [R]``. It returns
the committed positions ``[R, K]`` and always commits at least one masked position per row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from d1ray.config import SamplerConfig

Policy = Callable[[Tensor, Tensor, SamplerConfig], Tensor]


def low_confidence(confidence: Tensor, quota: Tensor, config: SamplerConfig) -> Tensor:
    """LLaDA's low-confidence remasking: the ``quota`` most confident positions stay, the rest remask."""
    rank = confidence.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank < quota[:, None]) & confidence.isfinite()


def threshold(confidence: Tensor, quota: Tensor, config: SamplerConfig) -> Tensor:
    """Fast-dLLM's parallel decoding (arXiv 2505.22618): every position above ``config.threshold``,
    and the most confident one in any case."""
    most_confident = low_confidence(confidence, torch.ones_like(quota), config)
    return (confidence > config.threshold) | most_confident


POLICIES: dict[str, Policy] = {"low_confidence": low_confidence, "threshold": threshold}
