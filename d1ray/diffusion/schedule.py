"""Schedules: how many positions of a block each denoising step commits.

Steps that would commit nothing are left out: they need no forward pass.
"""

from itertools import pairwise

import numpy as np
import torch

from d1ray.config.sampling import SamplerConfig


def commit_counts(config: SamplerConfig) -> list[int]:
    """The positive counts of one block, in order; they add up to ``config.block_length``."""
    steps = config.steps // (config.gen_length // config.block_length)
    schedule = uniform_counts if config.schedule == "uniform" else time_counts
    return [count for count in schedule(config.block_length, steps) if count]


def uniform_counts(masks: int, steps: int) -> list[int]:
    """Equal shares, the remainder first (LLaDA, arXiv 2502.09992)."""
    share, remainder = divmod(masks, steps)
    return [share + (step < remainder) for step in range(steps)]


def time_counts(masks: int, steps: int, end: float = 1e-3) -> list[int]:
    """The share 1 - s/t of what is still masked in a step from time t to time s, rounded down; the last step
    commits the rest (Dream, arXiv 2508.15487).

    The times fall evenly from 1 to ``end``. The arithmetic is Dream's, in fp32: where the product is close to
    a whole number, its rounding decides.
    """
    times = torch.linspace(1, end, steps + 1, dtype=torch.float32).numpy()
    counts = []
    for t, s in pairwise(times[:-1]):
        counts.append(int(np.float32(masks) * (np.float32(1) - s / t)))
        masks -= counts[-1]
    return [*counts, masks]
