"""Log-probabilities of whole groups under an estimator's views, without gradient."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d1ray.diffusion.estimators.estimator import Group, GroupView
from d1ray.diffusion.likelihood import View, join_views, split_rows, token_logps
from d1ray.diffusion.sampler import Samples
from d1ray.models.model import DiffusionLM
from d1ray.rl.batch import up_to_first_eos


def group_of(
    model: DiffusionLM, group_id: int, prompt: Sequence[int], samples: Samples, rows: slice
) -> Group:
    """The completions ``rows`` of ``samples``, all of one prompt, as an estimator sees them."""
    completions = samples.ids[rows].cpu().numpy().astype(np.int32)
    return Group(
        group_id,
        np.array(prompt, np.int32),
        completions,
        samples.step_map[rows].cpu().numpy().astype(np.int32),
        up_to_first_eos(completions, model.config.eos_token_id),
    )


def view_logps(scorer: Callable[[View], Tensor], view: View, rows: int) -> Tensor:
    """``[N, L]`` of one view, in parts of at most ``rows`` rows; rows that score nothing are not run.

    ``scorer`` is ``token_logps`` of a model.
    """
    logps = torch.zeros(view.completions.shape, device=view.completions.device)
    for mine, part in split_rows(view, rows):
        logps = logps.index_copy(0, mine, scorer(part))
    return logps


def group_logps(
    model: DiffusionLM, group: Group, views: Sequence[GroupView], micro_batch_tokens: int
) -> NDArray[np.float32]:
    """Log-probabilities ``[G, views, L]`` of one group's completions, 0 where a view does not score."""
    device = next(model.parameters()).device
    rows = micro_batch_tokens // (len(group.prompt) + group.completions.shape[1])
    parts = []
    with torch.inference_mode():
        for some in _view_batches(views, rows):
            joined = join_views(some, [group.completions] * len(some), model.config.pad_token_id, device)
            logps = view_logps(partial(token_logps, model), joined, max(1, rows))
            parts.append(logps.unflatten(0, (len(some), -1)))
    return np.ascontiguousarray(torch.cat(parts).transpose(0, 1).cpu().numpy())


def _view_batches(views: Sequence[GroupView], rows: int) -> Iterator[list[GroupView]]:
    """Views in batches of at most ``rows`` rows, at least one view each."""
    batch: list[GroupView] = []
    for view in views:
        if batch and sum(len(v.inputs) for v in (*batch, view)) > rows:
            yield batch
            batch = []
        batch.append(view)
    yield batch
