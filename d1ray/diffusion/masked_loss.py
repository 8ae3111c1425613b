"""The masked-diffusion training loss of LLaDA and of d1's SFT, as a module that DDP or FSDP can wrap.

    loss = 1 / (number of completion tokens) * sum over masked positions of CE(logits, token) / t'

The prompt is never noised. Padding EOS tokens belong to the completion: they teach stopping.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from d1ray.diffusion.head import head_logps
from d1ray.diffusion.noise import forward_process
from d1ray.models.model import DiffusionLM
from d1ray.models.sharding import device_of


@dataclass(frozen=True)
class Demonstration:
    """Token ids of a prompt, one at least, and of its completion, the EOS that pad it included."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


class MaskedDiffusionLoss(nn.Module):
    """Sum over masked positions of CE / t' (arXiv 2502.09992, Eq. 3; d1, Algorithm 2)."""

    def __init__(self, model: DiffusionLM):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        clean: Tensor,
        masked: Tensor,
        levels: Tensor,
    ) -> Tensor:
        """The summed loss, a scalar.

        Args:
            input_ids: ``[B, W]`` with masked positions already replaced.
            attention_mask, position_ids: as ``DiffusionLM.hidden`` takes them.
            clean: ``[B, L]`` the tokens of the last L columns.
            masked: ``[B, L]`` bool.
            levels: ``[B, L]`` the t' of each position's demonstration.
        """
        length = clean.shape[1]
        columns = torch.arange(input_ids.shape[1] - length, input_ids.shape[1], device=input_ids.device)
        hidden = self.model.hidden(
            input_ids, attention_mask, position_ids, at=columns.expand(len(input_ids), length)
        )
        tokens = clean[masked]
        index = torch.arange(len(tokens), device=tokens.device)
        logps = head_logps(hidden[masked], self.model.head_weight, index, tokens)
        return -(logps * (1 / levels)[masked]).sum()


def noised_inputs(
    model: DiffusionLM,
    rows: Sequence[Sequence[int]],
    demonstrations: Mapping[int, Demonstration] | Sequence[Demonstration],
    eps: float,
    seed: int,
    *counters: int,
    stream: str = "sft noise",
    strata: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    """Arguments of ``MaskedDiffusionLoss.forward`` for rows of demonstrations.

    A row holds one demonstration or several, one after the other; it ends in the last column. In a row of
    several each attends to itself alone and counts its positions from 0, as in a row of its own.

    Args:
        rows: B rows of indices of ``demonstrations``.
        demonstrations: by their place in the whole batch, which keys their noise with ``seed``, ``stream``
            and ``counters``.
        strata: as for ``forward_process``.
    """
    totals = [sum(len(demonstrations[i]) for i in row) for row in rows]
    width, packed = max(totals), any(len(row) > 1 for row in rows)
    length = width if packed else max(len(demonstrations[row[0]].completion) for row in rows)
    ids = np.full((len(rows), width), model.config.pad_token_id, np.int64)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)  # segment 0 is padding
    masked = np.zeros((len(rows), width), bool)
    levels = np.ones((len(rows), width), np.float32)
    for row, members in enumerate(rows):
        start = width - totals[row]
        for number, i in enumerate(members, start=1):
            one, size = demonstrations[i], len(demonstrations[i].completion)
            end = start + len(one)
            ids[row, start:end] = [*one.prompt, *one.completion]
            segments[row, start:end], positions[row, start:end] = number, np.arange(len(one))
            level, hidden = forward_process(
                np.array([size]), size, eps, seed, *counters, rows=[i], stream=stream, strata=strata
            )
            masked[row, end - size : end], levels[row, end - size : end] = hidden[0], level[0]
            start = end
    attention: np.ndarray | None = None
    if packed:
        attention = segments[:, :, None] == segments[:, None, :]
    elif min(totals) < width:
        attention = segments
    noised = np.where(masked, model.config.mask_token_id, ids)
    device = device_of(model)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return (
        tensor(noised),
        None if attention is None else tensor(attention),
        tensor(positions) if packed else None,
        tensor(ids[:, width - length :]),
        tensor(masked[:, width - length :]),
        tensor(levels[:, width - length :]),
    )
