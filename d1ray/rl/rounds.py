"""What each rank does in a pass over a batch: its micro-batches, and the calls it makes for the others' sake.

Shapes: K views, n groups, G completions, L completion length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators.estimator import GroupView
from d1ray.diffusion.likelihood import View, ViewLogps, join_views
from d1ray.models.model import DiffusionLM
from d1ray.models.sharding import device_of
from d1ray.rl.batch import Batch


@dataclass(frozen=True)
class Share:
    """One rank's micro-batch in a round.

    Attributes:
        groups: indices of its groups; none where the others have more rounds.
        rows: at most so many rows in one call of the model.
        calls: ``[K]`` calls that each view takes.
        large: some view takes more than one call.
    """

    groups: NDArray[np.int64]
    rows: int
    calls: tuple[int, ...]
    large: bool


def rounds(
    batch: Batch, views: Sequence[Sequence[GroupView]], config: RLConfig, world: int
) -> Iterator[list[Share]]:
    """What each of ``world`` ranks does, round by round: every rank knows how often all the others call the
    model, because those of sharded weights have to call it together.

    Rank r has the groups r, r + world, ...; a micro-batch holds as many as fit in ``micro_batch_tokens``.
    """
    most = max(len(view.inputs) for group in views for view in group)
    width = max(len(group.prompt) + group.completions.shape[1] for group in batch.groups)
    size = max(1, config.micro_batch_tokens // (most * width))
    for first in range(0, math.ceil(len(batch.groups) / world), size):
        yield [
            _share(batch, views, np.arange(rank, len(batch.groups), world)[first : first + size], config)
            for rank in range(world)
        ]


def _share(
    batch: Batch, views: Sequence[Sequence[GroupView]], groups: NDArray[np.int64], config: RLConfig
) -> Share:
    count = len(views[0])
    if not len(groups):
        return Share(groups, 1, (0,) * count, large=False)
    width = max(len(batch.groups[g].prompt) + batch.groups[g].completions.shape[1] for g in groups)
    rows = max(1, config.micro_batch_tokens // width)
    inputs = [sum(len(views[g][k].inputs) for g in groups) for k in range(count)]
    used = [sum(_used_rows(views[g][k]) for g in groups) for k in range(count)]
    return Share(groups, rows, tuple(math.ceil(n / rows) for n in used), large=max(inputs) > rows)


def _used_rows(view: GroupView) -> int:
    """How many of a view's rows score something."""
    return len(np.unique(view.row_of[(view.weights != 0).any(axis=-1)]))


class Idle:
    """Calls of the model whose result counts nothing: the other ranks need this one's part in their sums."""

    def __init__(
        self,
        scorer: ViewLogps,
        model: DiffusionLM,
        batch: Batch,
        views: Sequence[Sequence[GroupView]],
    ):
        self.scorer, self.model, self.batch, self.views = scorer, model, batch, views

    def run(self, times: int) -> None:
        for _ in range(times):
            self.scorer(self._view())

    def backward(self, times: int) -> None:
        for _ in range(times):
            (0.0 * self.scorer(self._view()).sum()).backward()

    def _view(self) -> View:
        """The first row of the first group, with one token to score."""
        view = joined(self.model, self.batch.select(np.array([0])), [self.views[0][0]])
        scored = torch.zeros_like(view.scored)
        scored[0, 0] = True
        first = torch.zeros_like(view.row_of)
        mask = None if view.attention_mask is None else view.attention_mask[:1]
        return View(view.input_ids[:1], mask, view.completions, first, scored)


def joined(model: DiffusionLM, batch: Batch, views: Sequence[GroupView]) -> View:
    """One view of all groups of ``batch``, on the model's device: ``views`` are theirs, in the same order."""
    device = device_of(model)
    return join_views(views, [group.completions for group in batch.groups], model.config.pad_token_id, device)
