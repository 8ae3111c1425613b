"""Log-probabilities from hidden states, a chunk of the vocabulary projection at a time.

The logits of a chunk are computed, read and dropped; the backward pass computes them again and adds
their part to the gradients of the hidden states and of the projection. Memory does not grow with
positions x vocabulary, in either pass.

Shapes: S positions, T tokens to score, d model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_BYTES = 32 * 1024**2  # of fp32 logits held at once


def head_logps(hidden: Tensor, weight: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities ``[T]`` in fp32 of tokens, each predicted by one of S hidden states; differentiable.

    Args:
        hidden: ``[S, d]``.
        weight: ``[V, d]`` the vocabulary projection, of the same dtype as ``hidden``.
        index: ``[T]`` the hidden state of each token.
        tokens: ``[T]``.
    """
    if torch.is_autocast_enabled(
        hidden.device.type
    ):  # once for both passes: autocast sees the forward one only
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    order = index.argsort(stable=True)
    logps = _HeadLogps.apply(hidden, weight, index[order], tokens[order])  # type: ignore[no-untyped-call]
    return torch.empty_like(logps).index_copy(0, order, logps)


class _HeadLogps(torch.autograd.Function):
    """``head_logps`` of tokens in the order of their positions."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        logps = torch.empty(len(tokens), device=hidden.device)
        normalisers = torch.empty(len(hidden), device=hidden.device)  # log of the sum over the vocabulary
        for positions, mine in _chunks(hidden, weight, index):
            logits = (hidden[positions] @ weight.T).float()
            normalisers[positions] = logits.logsumexp(-1)
            local = index[mine] - positions.start
            logps[mine] = logits[local, tokens[mine]] - normalisers[positions][local]
        ctx.save_for_backward(hidden, weight, index, tokens, normalisers)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # d logp[t] / d logits[s] = [t scored at s] (onehot(token) - softmax(logits[s]))
        hidden, weight, index, tokens, normalisers = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        totals = torch.zeros_like(normalisers).index_add_(0, index, upstream)
        for positions, mine in _chunks(hidden, weight, index):
            gradient = (hidden[positions] @ weight.T).float()
            gradient.sub_(normalisers[positions, None]).exp_().mul_(-totals[positions, None])
            gradient.index_put_(
                (index[mine] - positions.start, tokens[mine]), upstream[mine], accumulate=True
            )
            gradient = gradient.to(weight.dtype)
            if to_hidden is not None:
                to_hidden[positions] = gradient @ weight
            if to_weight is not None:
                to_weight.addmm_(gradient.T.float(), hidden[positions].float())
        return to_hidden, None if to_weight is None else to_weight.to(weight.dtype), None, None


def _chunks(hidden: Tensor, weight: Tensor, index: Tensor) -> list[tuple[slice, slice]]:
    """Slices of the positions, each with the slice of the (ordered) tokens that it predicts."""
    size = max(1, LOGITS_BYTES // (4 * len(weight)))
    starts = range(0, len(hidden), size)
    bounds = torch.tensor([*starts, len(hidden)], device=index.device)
    ends = torch.searchsorted(index, bounds).tolist()
    return [
        (slice(start, min(start + size, len(hidden))), slice(ends[n], ends[n + 1]))
        for n, start in enumerate(starts)
    ]
