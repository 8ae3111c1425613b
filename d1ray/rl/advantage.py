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
    equal = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)
    advantages = rewards.astype(np.float64) - rewards.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.where(equal, 0.0, advantages).astype(np.float32)
