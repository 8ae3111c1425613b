"""A learner's batch: the rows of a rollout table as arrays and tensors."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from d1ray.rl.advantage import group_mean


@dataclass(frozen=True)
class Batch:
    """n groups of G completions.

    Attributes:
        group_ids: ``[n]``.
        prompts: n arrays of token ids.
        completions: ``[n, G, L]``.
        scored: ``[n, G, L]`` True up to and including the first EOS.
        old: ``[n, G, M, L]`` log-probabilities under the policy that sampled.
        reference: ``[n, G, M, L]``, or None when no reference was evaluated.
        advantages: ``[n, G]``.
    """

    group_ids: tuple[int, ...]
    prompts: tuple[NDArray[np.int32], ...]
    completions: Tensor
    scored: Tensor
    old: Tensor
    reference: Tensor | None
    advantages: Tensor

    def select(self, groups: NDArray[np.int64]) -> "Batch":
        """The batch restricted to ``groups`` (indices), in that order."""
        index = torch.from_numpy(groups)
        return Batch(
            tuple(self.group_ids[g] for g in groups),
            tuple(self.prompts[g] for g in groups),
            self.completions[index],
            self.scored[index],
            self.old[index],
            None if self.reference is None else self.reference[index],
            self.advantages[index],
        )


def up_to_first_eos(completions: Tensor, eos_id: int) -> Tensor:
    """``[..., L]`` bool: True up to and including the first EOS, everywhere if there is none."""
    is_eos = (completions == eos_id).long()
    return (is_eos.cumsum(-1) - is_eos) == 0


def advantages_of(table: pa.Table, group_size: int) -> NDArray[np.float32]:
    """Advantages ``[n, G]`` of a scored table whose groups are adjacent rows."""
    rewards = table["reward"].to_numpy().reshape(-1, group_size)
    return group_mean(rewards)


def batch_of(table: pa.Table, group_size: int, eos_id: int, device: torch.device) -> Batch:
    """Reads a scored rollout table (``schema.SCORED``).

    The arrays are copied: memory that Ray shares between processes is never written through.
    """
    rows = table.num_rows
    groups = rows // group_size
    completions = torch.tensor(_flat(table, "completion_ids", 1).reshape(groups, group_size, -1))
    length = completions.shape[-1]

    def logps(column: str) -> Tensor:
        return torch.tensor(_flat(table, column, 2).reshape(groups, group_size, -1, length)).to(device)

    reference = logps("reference_logps")
    completions = completions.long().to(device)
    firsts = table.take(pa.array(range(0, rows, group_size)))
    return Batch(
        group_ids=tuple(firsts["group_id"].to_pylist()),
        prompts=tuple(np.array(ids, np.int32) for ids in firsts["prompt_ids"].to_pylist()),
        completions=completions,
        scored=up_to_first_eos(completions, eos_id),
        old=logps("old_logps"),
        reference=reference if reference.shape[2] else None,
        advantages=torch.from_numpy(advantages_of(table, group_size)).to(device),
    )


def _flat(table: pa.Table, column: str, depth: int) -> NDArray[np.float32]:
    array = table[column].combine_chunks()
    for _ in range(depth):
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False))
