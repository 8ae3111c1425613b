"""One inner update: the whole batch under inner update j's prompt masks, one optimiser step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d1ray.config import RLConfig
from d1ray.diffusion import one_step_view, prompt_mask, token_logps
from d1ray.models import LLaDA
from d1ray.rl.batch import Batch
from d1ray.rl.diffu_grpo import diffu_grpo_loss


@dataclass(frozen=True)
class UpdateMetrics:
    """Means over the scored tokens of the batch. ``gap`` is mean |l_new - l_old| before the update."""

    loss: float
    kl: float
    clip_fraction: float
    gap: float
    scored_tokens: int


def prompt_masks(
    prompt_length: int, group_id: int, inner: int, group_size: int, seed: int, config: RLConfig
) -> list[NDArray[np.bool_]]:
    """The prompt masks of one group at one inner update: 1 when the group shares it, else G."""
    p = config.prompt_mask_prob
    if config.mask_scope == "group":
        return [prompt_mask(prompt_length, p, seed, group_id, inner)]
    return [prompt_mask(prompt_length, p, seed, group_id, inner, rollout) for rollout in range(group_size)]


def group_logps(
    model: LLaDA,
    prompts: tuple[NDArray[np.int32], ...],
    masks: list[list[NDArray[np.bool_]]],
    completions: Tensor,
) -> Tensor:
    """One-step log-probabilities ``[n, G, L]`` of n groups, each under its own mask(s).

    ``masks[g]`` holds 1 mask (shared: one forward serves the G completions) or G masks.
    """
    n, group_size, length = completions.shape
    rows = [(g, mask) for g in range(n) for mask in masks[g]]
    view = one_step_view(model, [prompts[g] for g, _ in rows], [mask for _, mask in rows], length)
    row_of = torch.arange(n * group_size, device=completions.device) // (n * group_size // len(rows))
    return token_logps(model, view, completions.flatten(0, 1), row_of).unflatten(0, (n, group_size))


def accumulate_gradient(model: LLaDA, batch: Batch, inner: int, seed: int, config: RLConfig) -> UpdateMetrics:
    """Adds the gradient of the batch's loss at inner update ``inner`` to the parameters' ``grad``.

    Runs micro-batches of at most ``config.micro_batch_tokens`` tokens; the loss is the mean over all
    scored tokens of the batch, whatever the micro-batches are.
    """
    tokens = int(batch.scored.sum())
    totals = np.zeros(4)
    for groups in _micro_batches(batch, config):
        part = batch.select(groups)
        group_size = part.completions.shape[1]
        masks = [
            prompt_masks(len(prompt), group_id, inner, group_size, seed, config)
            for prompt, group_id in zip(part.prompts, part.group_ids, strict=True)
        ]
        new = group_logps(model, part.prompts, masks, part.completions)
        loss = diffu_grpo_loss(
            new.flatten(0, 1),
            part.old[:, :, inner].flatten(0, 1),
            None if part.reference is None else part.reference[:, :, inner].flatten(0, 1),
            part.advantages.flatten(),
            part.scored.flatten(0, 1),
            config.epsilon,
            config.beta,
        )
        (loss.total / tokens).backward()
        totals += [float(x) for x in (loss.total.detach(), loss.kl, loss.clipped, loss.gap)]
    loss_mean, kl, clip_fraction, gap = (totals / max(tokens, 1)).tolist()
    return UpdateMetrics(loss_mean, kl, clip_fraction, gap, tokens)


def _micro_batches(batch: Batch, config: RLConfig) -> Iterator[NDArray[np.int64]]:
    """Group indices in batches whose forward rows hold at most ``micro_batch_tokens`` tokens."""
    rows_per_group = 1 if config.mask_scope == "group" else batch.completions.shape[1]
    width = max(len(prompt) for prompt in batch.prompts) + batch.completions.shape[2]
    size = max(1, config.micro_batch_tokens // (rows_per_group * width))
    for start in range(0, len(batch.prompts), size):
        yield np.arange(start, min(start + size, len(batch.prompts)))
