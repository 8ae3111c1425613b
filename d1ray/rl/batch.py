"""A learner's batch: the rows of a rollout table as arrays and tensors."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from d1ray.diffusion.estimators.estimator import Group


@dataclass(frozen=True)
class Batch:
    """n groups of G completions.

    Attributes:
        groups: n groups: prompts, completions, step maps and what is scored of them.
        old: ``[n, G, M, K, L]`` log-probabilities under the policy that ratios refer to, by inner update
            and view; None when the algorithm does not need them.
        reference: the same under the reference policy, or None.
        advantages: ``[n, G]``.
        behaviour: as ``old``, under the policy that sampled, where ``old`` is under another one
            (``d1ray.rl.proximal``); else None.
    """

    groups: tuple[Group, ...]
    old: Tensor | None
    reference: Tensor | None
    advantages: Tensor
    behaviour: Tensor | None = None

    def select(self, groups: NDArray[np.int64]) -> "Batch":
        """The batch restricted to ``groups`` (indices), in that order."""
        index = torch.from_numpy(groups)
        return Batch(
            tuple(self.groups[g] for g in groups),
            None if self.old is None else self.old[index],
            None if self.reference is None else self.reference[index],
            self.advantages[index],
            None if self.behaviour is None else self.behaviour[index],
        )


def up_to_first_eos(completions: NDArray[np.int32], eos_id: int) -> NDArray[np.bool_]:
    """``[..., L]``: True up to and including the first EOS, everywhere if there is none."""
    is_eos = completions == eos_id
    return (is_eos.cumsum(-1) - is_eos) == 0


def batch_of(
    table: pa.Table, advantages: NDArray[np.float32], eos_id: int, views: int, device: torch.device
) -> Batch:
    """Reads a scored rollout table (``schema.SCORED``) whose groups are adjacent rows.

    The arrays are copied: memory that Ray shares between processes is never written through.

    Args:
        table: n x G rows.
        advantages: ``[n, G]``.
        eos_id: completions are scored up to the first one.
        views: K, the estimator's views per inner update.
        device: where the tensors go.
    """
    count, size = advantages.shape

    def column(name: str, depth: int) -> NDArray[np.generic]:
        array = table[name].combine_chunks()
        for _ in range(depth):
            array = array.flatten()
        return np.array(array.to_numpy(zero_copy_only=False))

    def ids(name: str) -> NDArray[np.int32]:
        return column(name, 1).astype(np.int32).reshape(count, size, -1)

    completions = ids("completion_ids")
    step_maps, scored = ids("step_map"), up_to_first_eos(completions, eos_id)

    def logps(name: str) -> Tensor | None:
        values = column(name, 2)
        shaped = values.reshape(count, size, -1, views, completions.shape[-1])
        return torch.from_numpy(shaped).to(device) if values.size else None

    firsts = table.take(pa.array(range(0, count * size, size)))
    rows = zip(firsts["group_id"].to_pylist(), firsts["prompt_ids"].to_pylist(), strict=True)
    groups = tuple(
        Group(group_id, np.array(prompt, np.int32), completions[g], step_maps[g], scored[g])
        for g, (group_id, prompt) in enumerate(rows)
    )
    advantage = torch.from_numpy(advantages.copy()).to(device)
    return Batch(groups, logps("old_logps"), logps("reference_logps"), advantage)
