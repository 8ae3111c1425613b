"""A lower bound on the log-likelihood of a whole completion, by Monte Carlo (LLaDA, arXiv 2502.09992, Eq. 6).

log p(y | x) >= E_{l ~ U{1..L}, y_l} [ L / l * sum over the l masked i of log p(y_i | x, y_l) ], y_l being y
with exactly l tokens masked. It ranks the choices of a question; one forward pass a sample.

Shapes: P prompt, L completion, S samples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from d1ray.config import rng
from d1ray.diffusion.likelihood import View, token_logps
from d1ray.models.model import DiffusionLM


def masked_sets(length: int, samples: int, seed: int, *counters: int) -> NDArray[np.bool_]:
    """``[S, L]``: which tokens each sample masks.

    A sample's l is drawn from its own S-th part of {1..L}: together they are uniform, and their mean varies
    less than that of independent draws.
    """
    draw = rng.generator(seed, "sequence bound", *counters)
    order = draw.random((samples, length)).argsort(axis=1).argsort(axis=1)
    counts = 1 + np.floor(length * (np.arange(samples) + draw.random(samples)) / samples).astype(int)
    masked: NDArray[np.bool_] = order < np.minimum(counts, length)[:, None]
    return masked


@torch.inference_mode()
def sequence_bound(
    model: DiffusionLM,
    prompt: Sequence[int],
    completion: Sequence[int],
    samples: int,
    seed: int,
    *counters: int,
    rows: int = 32,
) -> float:
    """The bound in nats, an estimate from ``samples`` masked copies; exact for a completion of one token.

    Args:
        prompt: P token ids, at least one where the model predicts a token from the one before (Dream).
        completion: L token ids.
        samples: S.
        seed: with ``counters``, keys the masks.
        rows: copies in one forward pass.

    Raises:
        ValueError: the completion is empty, or prompt and completion exceed the model's context.
    """
    length, context = len(completion), model.config.max_sequence_length
    if not length or len(prompt) + length > context:
        raise ValueError(
            f"a completion of {length} tokens after a prompt of {len(prompt)}: expected 1 to "
            f"{context - len(prompt)}"
        )
    device = next(model.parameters()).device
    masked = torch.from_numpy(masked_sets(length, samples if length > 1 else 1, seed, *counters)).to(device)
    ids = torch.tensor([*prompt, *completion], device=device)
    total = 0.0
    for part in masked.split(rows):
        inputs = ids.repeat(len(part), 1)
        inputs[:, len(prompt) :].masked_fill_(part, model.config.mask_token_id)
        completions = ids[len(prompt) :].expand(len(part), length)
        view = View(inputs, None, completions, torch.arange(len(part), device=device), part)
        logps = token_logps(model, view).double()
        total += float((logps.sum(-1) * length / part.sum(-1)).sum())
    return total / len(masked)
