"""Advantages of a group's completions."""

import numpy as np
from numpy.typing import NDArray


def group_mean(rewards: NDArray[np.float32]) -> NDArray[np.float32]:
    """A_i = r_i - mean(r), without division by the standard deviation (d1, Section 3.1; Dr. GRPO).

    Args:
        rewards: ``[groups, G]``.

    Returns:
        ``[groups, G]``; a group with equal rewards gets exactly 0.
    """
    wide = rewards.astype(np.float64)  # sums of equal fp32 numbers are exact in fp64, and so is their mean
    return (wide - wide.mean(axis=1, keepdims=True)).astype(np.float32)
