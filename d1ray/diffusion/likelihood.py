"""Log-probabilities of completion tokens under masked views, without ever building ``[rows, L, V]`` logits.

The vocabulary projection runs at scored positions only, a chunk at a time (``d1ray.diffusion.head``).

Shapes: N completions, R view rows, P prompt, L completion, V vocabulary, S scored positions, T scored tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d1ray.diffusion.estimators.estimator import GroupView
from d1ray.diffusion.head import head_logps
from d1ray.diffusion.prompts import pad_prompts
from d1ray.models.model import DiffusionLM


@dataclass(frozen=True)
class View:
    """Model inputs whose last L positions are scored.

    Attributes:
        input_ids: ``[R, P + L]``.
        attention_mask: ``[R, P + L]``, or None when nothing is padded.
        completions: ``[N, L]`` the tokens to score.
        row_of: ``[N]`` the row that scores each completion.
        scored: ``[N, L]`` bool.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    completions: Tensor
    row_of: Tensor
    scored: Tensor


def join_views(
    views: Sequence[GroupView],
    completions: Sequence[NDArray[np.int32]],
    pad_id: int,
    device: torch.device,
) -> View:
    """One ``View`` of n group views, group after group: N = n G.

    Args:
        views: n views.
        completions: the n groups' completions ``[G, L]``.
        pad_id: fills the left padding of shorter prompts.
        device: where the tensors go.
    """
    inputs = torch.from_numpy(np.concatenate([view.inputs for view in views])).long().to(device)
    prompts = [prompt for view in views for prompt in view.prompts]
    ids, attention_mask = pad_prompts(prompts, inputs.shape[1], pad_id, device)
    first_rows = np.cumsum([0] + [len(view.inputs) for view in views[:-1]])
    rows = np.concatenate([view.row_of + first for view, first in zip(views, first_rows, strict=True)])
    weights = np.concatenate([view.weights for view in views])
    return View(
        torch.cat([ids, inputs], dim=1),
        attention_mask,
        torch.from_numpy(np.concatenate(completions)).long().to(device),
        torch.from_numpy(rows).to(device),
        torch.from_numpy(weights != 0).to(device),
    )


def token_logps(model: DiffusionLM, view: View) -> Tensor:
    """Log-probabilities ``[N, L]`` in fp32 of the scored tokens, 0 elsewhere; differentiable."""
    length = view.completions.shape[1]
    width = view.input_ids.shape[1]
    columns = torch.arange(width - length, width, device=view.input_ids.device)
    hidden = model.hidden(
        view.input_ids, view.attention_mask, at=columns.expand(len(view.input_ids), length)
    )  # [R, L, d]
    completion, token = view.scored.nonzero(as_tuple=True)  # [T]
    place = view.row_of[completion] * length + token
    places, index = place.unique(return_inverse=True)  # scored positions [S], and each token's among them
    scored = hidden.flatten(0, 1)[places]
    logps = head_logps(scored, model.head_weight, index, view.completions[view.scored])
    return torch.zeros(view.scored.shape, device=logps.device).masked_scatter(view.scored, logps)


class ViewLogps(nn.Module):
    """``token_logps`` as a module, so that the model's weights can be spread over ranks
    (``d1ray.models.sharding``); with ``bf16`` its matrix products are in that precision."""

    def __init__(self, model: DiffusionLM, bf16: bool = False):
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, view: View) -> Tensor:
        with torch.autocast(view.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            return token_logps(self.model, view)


def one_step_logps(
    model: DiffusionLM, masked_ids: Tensor, completions: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Log-probabilities of completions from one forward pass over given masked inputs (d1, Section 3.2).

    Args:
        model: differentiable; gradients flow when enabled.
        masked_ids: ``[B, P + L]``: the prompt, possibly with masked tokens, and L columns of completion,
            usually all masked.
        completions: ``[B, L]`` the tokens to score.
        attention_mask: ``[B, P + L]``, 0 at padding, or None.

    Returns:
        ``[B, L]`` in fp32.

    Raises:
        ValueError: the shapes do not fit, or a completion holds an id that the model does not have.

    Example:
        >>> prompt, completion = torch.tensor([[4, 11, 5]]), torch.tensor([[7, 2]])
        >>> masked = torch.cat([prompt, torch.full_like(completion, model.config.mask_token_id)], dim=1)
        >>> one_step_logps(model, masked, completion).shape
        torch.Size([1, 2])
    """
    if len(masked_ids) != len(completions) or completions.shape[1] > masked_ids.shape[1]:
        raise ValueError(
            f"masked_ids must be [B, P + L] and completions [B, L]; got {list(masked_ids.shape)} and "
            f"{list(completions.shape)}"
        )
    vocabulary = model.config.embeddings
    if completions.numel() and not 0 <= int(completions.min()) <= int(completions.max()) < vocabulary:
        raise ValueError(f"completions hold ids outside the model's {vocabulary}")
    rows = torch.arange(len(completions), device=completions.device)
    everything = torch.ones_like(completions, dtype=torch.bool)
    return token_logps(model, View(masked_ids, attention_mask, completions, rows, everything))


def split_rows(view: View, rows: int) -> Iterator[tuple[Tensor, View]]:
    """Parts of a view of at most ``rows`` rows, each with the indices ``[n]`` of its completions.

    Rows without anything to score are left out.
    """
    used = view.row_of[view.scored.any(-1)].unique()
    for part in used.split(rows) if len(used) else ():
        mine = torch.isin(view.row_of, part).nonzero(as_tuple=True)[0]
        mask = None if view.attention_mask is None else view.attention_mask[part]
        row_of = torch.searchsorted(part, view.row_of[mine])
        yield mine, View(view.input_ids[part], mask, view.completions[mine], row_of, view.scored[mine])
