"""One inner update: the gradient of the whole batch's loss, view by view, in micro-batches.

A loss that is a sum over views runs one view at a time: forward, loss, backward. A loss that mixes
views, or a group too large for one micro-batch, takes two passes: the first, without gradient, gives
all log-probabilities l and with them the loss and dloss/dl; the second runs each view again, in parts
of any size, and sends dloss/dl back through it. Memory is that of one part either way.

Shapes: K views, n groups, G completions, L completion length.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from d1ray.config import RLConfig
from d1ray.diffusion import GroupView, View, join_views
from d1ray.diffusion.likelihood import ViewLogps, split_rows
from d1ray.models import DiffusionLM
from d1ray.models.sharding import device_of, is_sharded, ranks
from d1ray.rl.algorithm import Algorithm, Terms, Totals
from d1ray.rl.batch import Batch
from d1ray.rl.likelihoods import view_logps


def accumulate_gradient(
    model: DiffusionLM,
    batch: Batch,
    inner: int,
    seed: int,
    config: RLConfig,
    scorer: ViewLogps | None = None,
) -> dict[str, float]:
    """Adds the gradient of the batch's loss at inner update ``inner`` to the parameters' ``grad``.

    Micro-batches hold at most ``config.micro_batch_tokens`` tokens; the loss is the batch's, whatever
    the micro-batches are. Several ranks share the groups: each calls this with the same batch, and gets the
    whole batch's gradient (of sharded weights its part).

    Args:
        scorer: calls ``model``; given where its weights are sharded.

    Returns:
        ``loss`` and the algorithm's metrics, as means over the batch; and ``gap``, the mean
        |l_new - l_old| of scored tokens before the update, if the algorithm has old log-probabilities.
    """
    algorithm, mask_id = config.algorithm, model.config.mask_token_id
    scorer = scorer or ViewLogps(model)
    views = [algorithm.estimator.views(group, mask_id, seed, inner) for group in batch.groups]  # [n][K]
    totals = count(batch, views)
    world, rank = ranks()
    sharded = is_sharded(model)
    scale = world if sharded else 1  # FSDP averages over the ranks
    metrics: defaultdict[str, float] = defaultdict(float)
    idle = _Idle(scorer, model, batch, views)
    for shares in rounds(batch, views, config, world):
        own = shares[rank]
        part = batch.select(own.groups)
        calls = [max(share.calls[k] for share in shares) for k in range(algorithm.estimator.views_per_update)]
        if any(share.large for share in shares) or (algorithm.mixes_views and len(calls) > 1):
            groups = [[views[g][k] for g in own.groups] for k in range(len(calls))]  # [K][n]
            joined = [_joined(model, part, some) for some in groups] if len(own.groups) else []
            with torch.no_grad():
                logps = [view_logps(scorer, view, own.rows) for view in joined]
                idle.run(sum(calls) - sum(own.calls))
            gradients = []
            if joined:
                leaf = torch.stack(logps).requires_grad_()  # [K, N, L]
                _backward(algorithm, _terms(leaf, part, groups, 0, inner, totals), metrics)
                gradients = list(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            for view, gradient in zip(joined, gradients, strict=True):
                for mine, some_rows in split_rows(view, own.rows):
                    scorer(some_rows).backward(scale * gradient[mine])
            idle.backward(sum(calls) - sum(own.calls))
            continue
        for k, most in enumerate(calls):
            if len(own.groups):
                some = [views[g][k] for g in own.groups]
                view = _joined(model, part, some)
                terms = _terms(view_logps(scorer, view, own.rows)[None], part, [some], k, inner, totals)
                _backward(algorithm, terms, metrics, scale)
            idle.backward(most - own.calls[k])
    if world > 1 and not sharded:
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
    return _summed(metrics, world)


def count(batch: Batch, views: Sequence[Sequence[GroupView]]) -> Totals:
    """The batch's denominators, each at least 1."""
    return Totals(
        groups=max(1, len(batch.groups)),
        completions=max(1, sum(len(group.completions) for group in batch.groups)),
        tokens=max(1, sum(int(group.scored.sum()) for group in batch.groups)),
        view_tokens=max(1, sum(int((view.weights != 0).sum()) for group in views for view in group)),
    )


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


class _Idle:
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
        view = _joined(self.model, self.batch.select(np.array([0])), [self.views[0][0]])
        scored = torch.zeros_like(view.scored)
        scored[0, 0] = True
        first = torch.zeros_like(view.row_of)
        mask = None if view.attention_mask is None else view.attention_mask[:1]
        return View(view.input_ids[:1], mask, view.completions, first, scored)


def _summed(metrics: Mapping[str, float], world: int) -> dict[str, float]:
    """Sums over the ranks, in their order."""
    if world == 1:
        return dict(metrics)
    everyone: list[dict[str, float]] = [{}] * world
    dist.all_gather_object(everyone, dict(metrics))
    names = dict.fromkeys(name for one in everyone for name in one)
    return {name: sum(one.get(name, 0.0) for one in everyone) for name in names}


def _joined(model: DiffusionLM, batch: Batch, views: Sequence[GroupView]) -> View:
    completions = [group.completions for group in batch.groups]
    return join_views(views, completions, model.config.pad_token_id, device_of(model))


def _terms(
    new: Tensor, part: Batch, views: Sequence[Sequence[GroupView]], first: int, inner: int, totals: Totals
) -> Terms:
    """The terms of ``views [K][n]``, the first of them view ``first`` of inner update ``inner``."""
    chosen = slice(first, first + len(views))

    def stored(logps: Tensor | None) -> Tensor | None:
        return None if logps is None else logps[:, :, inner, chosen].movedim(2, 0)

    weights = np.stack([np.stack([view.weights for view in groups]) for groups in views])  # [K, n, G, L]
    return Terms(
        new=new.unflatten(1, part.advantages.shape),
        old=stored(part.old),
        reference=stored(part.reference),
        weights=torch.from_numpy(weights).to(new.device),
        scored=torch.from_numpy(np.stack([group.scored for group in part.groups])).to(new.device),
        advantages=part.advantages,
        totals=totals,
    )


def _backward(
    algorithm: Algorithm, terms: Terms, metrics: defaultdict[str, float], scale: float = 1.0
) -> None:
    loss = algorithm.loss(terms)
    if loss.total.requires_grad:  # not when nothing is scored
        (loss.total if scale == 1 else scale * loss.total).backward()
    metrics["loss"] += float(loss.total.detach())
    for name, value in loss.metrics.items():
        metrics[name] += float(value)
    if terms.old is not None:
        away = (terms.new.detach() - terms.old).abs()
        metrics["gap"] += float(away[terms.weights != 0].sum()) / terms.totals.view_tokens
