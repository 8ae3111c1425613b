"""One inner update: the gradient of the whole batch's loss, view by view, in micro-batches.

A loss that is a sum over views runs one view at a time: forward, loss, backward. A loss that mixes
views, or a group too large for one micro-batch, takes two passes: the first, without gradient, gives
all log-probabilities l and with them the loss and dloss/dl; the second runs each view again, in parts
of any size, and sends dloss/dl back through it. Memory is that of one part either way.

Shapes: K views, n groups, G completions, L completion length.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators.estimator import GroupView
from d1ray.diffusion.likelihood import ViewLogps, split_rows
from d1ray.models.exchange import told_by_all
from d1ray.models.model import DiffusionLM
from d1ray.models.sharding import is_sharded, ranks
from d1ray.rl.algorithm import Algorithm, Terms, Totals
from d1ray.rl.batch import Batch
from d1ray.rl.likelihoods import view_logps
from d1ray.rl.rounds import Idle, joined, rounds


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
        |l_new - l_behaviour| of scored tokens before the update, if the algorithm has old log-probabilities.
    """
    algorithm, mask_id = config.algorithm, model.config.mask_token_id
    scorer = scorer or ViewLogps(model)
    views = [algorithm.estimator.views(group, mask_id, seed, inner) for group in batch.groups]  # [n][K]
    totals = count(batch, views)
    world, rank = ranks()
    sharded = is_sharded(model)
    scale = world if sharded else 1  # FSDP averages over the ranks
    metrics: defaultdict[str, float] = defaultdict(float)
    idle = Idle(scorer, model, batch, views)
    for shares in rounds(batch, views, config, world):
        own = shares[rank]
        part = batch.select(own.groups)
        calls = [max(share.calls[k] for share in shares) for k in range(algorithm.estimator.views_per_update)]
        if any(share.large for share in shares) or (algorithm.mixes_views and len(calls) > 1):
            groups = [[views[g][k] for g in own.groups] for k in range(len(calls))]  # [K][n]
            joins = [joined(model, part, some) for some in groups] if len(own.groups) else []
            with torch.no_grad():
                logps = [view_logps(scorer, view, own.rows) for view in joins]
                idle.run(sum(calls) - sum(own.calls))
            gradients = []
            if joins:
                leaf = torch.stack(logps).requires_grad_()  # [K, N, L]
                _backward(
                    algorithm, _terms(leaf, part, groups, 0, inner, totals, config.importance_cap), metrics
                )
                gradients = list(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            for view, gradient in zip(joins, gradients, strict=True):
                for mine, some_rows in split_rows(view, own.rows):
                    scorer(some_rows).backward(scale * gradient[mine])
            idle.backward(sum(calls) - sum(own.calls))
            continue
        for k, most in enumerate(calls):
            if len(own.groups):
                some = [views[g][k] for g in own.groups]
                view = joined(model, part, some)
                new = view_logps(scorer, view, own.rows)[None]
                terms = _terms(new, part, [some], k, inner, totals, config.importance_cap)
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


def _summed(metrics: Mapping[str, float], world: int) -> dict[str, float]:
    """Sums over the ranks, in their order."""
    if world == 1:
        return dict(metrics)
    everyone: list[dict[str, float]] = told_by_all(dict(metrics))
    names = dict.fromkeys(name for one in everyone for name in one)
    return {name: sum(one.get(name, 0.0) for one in everyone) for name in names}


def _terms(
    new: Tensor,
    part: Batch,
    views: Sequence[Sequence[GroupView]],
    first: int,
    inner: int,
    totals: Totals,
    cap: float | None,
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
        behaviour=stored(part.behaviour),
        importance_cap=cap,
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
    sampled = terms.old if terms.behaviour is None else terms.behaviour
    if sampled is not None:
        away = (terms.new.detach() - sampled).abs()
        metrics["gap"] += float(away[terms.weights != 0].sum()) / terms.totals.view_tokens
