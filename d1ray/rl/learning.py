"""One learning step: mu inner updates on a batch of rollouts."""

import logging
import math

import numpy as np
import torch

from d1ray.config.rl import RLConfig
from d1ray.diffusion.likelihood import ViewLogps
from d1ray.models.model import DiffusionLM
from d1ray.rl.batch import Batch
from d1ray.rl.optimizer import learning_rate, optimizer_step
from d1ray.rl.proximal import with_proximal
from d1ray.rl.update import accumulate_gradient

logger = logging.getLogger(__name__)


def learn(
    model: DiffusionLM,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    seed: int,
    config: RLConfig,
    scorer: ViewLogps | None = None,
    stale: bool = False,
) -> dict[str, float]:
    """Runs the mu inner updates of outer step ``step`` (from 0), each on the whole batch.

    Several ranks call it with the same batch and share the work (``d1ray.rl.update``).

    With ``config.skip_zero_advantage`` groups of equal rewards are left out of the loss and of its
    denominators. If that leaves none, nothing is updated, ``empty_batches`` is 1 and a warning is logged.

    Args:
        stale: some group was sampled by an older policy than ``model`` is. With ``config.importance_cap``
            the ratios then refer to ``model``, and the surrogate is weighted.

    Returns:
        ``groups_with_advantage``, the share of groups that teach something; ``updates`` made, ``nonfinite``
        ones dropped because their loss or gradient was, and ``empty_batches``. Unless the batch was empty,
        also the loss and the algorithm's metrics, averaged over the inner updates, and ``logprob_gap`` of
        the first one: the mean |l_learner - l_generator| before any update, 0 up to rounding when the
        rollouts are on-policy (absent if the algorithm has no old log-probabilities). Where the surrogate
        was weighted, ``importance_mean`` and ``importance_truncated``, the share of weights cut at the cap.
    """
    informative = np.flatnonzero((batch.advantages != 0).any(dim=1).cpu().numpy())
    metrics = {
        "groups_with_advantage": len(informative) / len(batch.groups),
        "updates": 0.0,
        "nonfinite": 0.0,
        "empty_batches": 0.0,
    }
    if config.skip_zero_advantage:
        if not len(informative):
            logger.warning(
                "step %d: no update, because in each of the %d groups all rewards are equal; "
                "if this goes on, the task is too hard or too easy for the policy",
                step,
                len(batch.groups),
            )
            return metrics | {"empty_batches": 1.0}
        batch = batch.select(informative)
    if stale and config.importance_cap is not None:
        batch = with_proximal(model, batch, seed, config, scorer)
    rows = []
    for inner in range(config.mu):
        update = accumulate_gradient(model, batch, inner, seed, config, scorer)
        rate = learning_rate(step * config.mu + inner, config.steps * config.mu, config.optimizer)
        if math.isfinite(update["loss"]):
            norm, applied = optimizer_step(model, optimizer, rate, config.optimizer)
        else:  # its gradient may well be finite, and wrong
            optimizer.zero_grad(set_to_none=True)
            norm, applied = math.nan, False
        metrics["updates"] += applied
        metrics["nonfinite"] += not applied
        rows.append(update | {"grad_norm": norm, "learning_rate": rate})
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "gap"}
    return metrics | means | ({"logprob_gap": rows[0]["gap"]} if "gap" in rows[0] else {})
