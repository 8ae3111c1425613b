"""Likelihood estimators: d1's one-step estimate of per-token log-probabilities.

d1 (arXiv 2504.12216, Section 3.2) estimates log pi(o_k | q) by one forward pass over the completion
fully masked and the prompt q' with tokens masked at random. The logits then do not depend on the
completion: one forward of a prompt mask serves every completion of the group.

Shapes: R forwards (rows), N completions, P prompt, L completion, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d1ray.diffusion.prompts import pad_prompts
from d1ray.models import LLaDA


@dataclass(frozen=True)
class View:
    """Model inputs whose last L positions are scored: ``input_ids [R, P + L]``."""

    input_ids: Tensor
    attention_mask: Tensor | None


def one_step_view(
    model: LLaDA,
    prompts: Sequence[NDArray[np.int32]],
    prompt_masks: Sequence[NDArray[np.bool_]],
    completion_length: int,
) -> View:
    """The fully masked completion after each randomly masked prompt (d1, Figure 3).

    Args:
        model: gives the mask and pad ids, and the device.
        prompts: R prompts.
        prompt_masks: R boolean arrays, each as long as its prompt; True positions are masked.
        completion_length: L.
    """
    mask_id, device = model.config.mask_token_id, next(model.parameters()).device
    noised = [np.where(mask, mask_id, prompt) for prompt, mask in zip(prompts, prompt_masks, strict=True)]
    ids, attention_mask = pad_prompts(noised, completion_length, model.config.pad_token_id, device)
    completion = ids.new_full((len(prompts), completion_length), mask_id)
    return View(torch.cat([ids, completion], dim=1), attention_mask)


def token_logps(model: LLaDA, view: View, completions: Tensor, row_of: Tensor) -> Tensor:
    """Log-probabilities of completion tokens, each read from the view row that serves it.

    Args:
        model: differentiable; gradients flow when enabled.
        view: R rows.
        completions: ``[N, L]`` token ids.
        row_of: ``[N]`` the view row of each completion.

    Returns:
        ``[N, L]`` in fp32.
    """
    length = completions.shape[1]
    hidden = model.hidden(view.input_ids, view.attention_mask)[:, -length:]
    logps = model.head(hidden).float().log_softmax(-1)  # [R, L, V]
    return logps[row_of[:, None], torch.arange(length, device=logps.device), completions]
