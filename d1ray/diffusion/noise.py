"""Masking noise: the SFT forward process and the RL prompt masks, keyed by counters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from d1ray.config import rng


def forward_process(
    lengths: NDArray[np.int64],
    width: int,
    eps: float,
    seed: int,
    *counters: int,
    rows: Sequence[int] | None = None,
    stream: str = "sft noise",
    strata: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Noise of masked-diffusion training (LLaDA, arXiv 2502.09992, Eq. 3): one t per row.

    t' = (1 - eps) t + eps with t ~ U(0, 1); each completion token is masked with probability t'.

    Args:
        lengths: ``[B]`` completion lengths; tokens beyond them are never masked.
        width: L, the padded completion length.
        eps: smallest masking probability, so that the 1/t' weight is bounded.
        seed: the run's seed.
        counters: position in the stream, e.g. phase and step.
        rows: indices of these rows in the whole batch, when workers share it; by default all of it.
        stream: of the randomness (``d1ray.config.rng``).
        strata: draw row i's t from the i-th of so many equal parts of (0, 1), so that the rows together cover
            all of it and their mean loss varies less.

    Returns:
        t' ``[B]`` and the mask ``[B, L]``.
    """
    levels = np.empty(len(lengths), np.float32)
    masks = np.zeros((len(lengths), width), bool)
    for row, (index, length) in enumerate(zip(rows or range(len(lengths)), lengths, strict=True)):
        draw = rng.generator(seed, stream, *counters, index)
        t = draw.random(dtype=np.float32)
        levels[row] = (1 - eps) * (t if strata is None else (index % strata + t) / strata) + eps
        masks[row, :length] = draw.random(int(length), dtype=np.float32) < levels[row]
    return levels, masks


def prompt_mask(length: int, probability: float, seed: int, *counters: int) -> NDArray[np.bool_]:
    """The random prompt mask of one likelihood (d1, Section 3.2): ``[P]``, each True with ``probability``.

    ``counters`` are (group id, inner update) when the group shares the mask, and
    (group id, inner update, rollout index) when each completion has its own.
    """
    return rng.generator(seed, "prompt mask", *counters).random(length, dtype=np.float32) < probability
