"""One learning step: mu inner updates on a batch of rollouts."""

from dataclasses import asdict

import numpy as np
import torch

from d1ray.config import RLConfig
from d1ray.models import LLaDA
from d1ray.rl.batch import Batch
from d1ray.rl.optimizer import learning_rate, optimizer_step
from d1ray.rl.update import accumulate_gradient


def learn(
    model: LLaDA, optimizer: torch.optim.Optimizer, batch: Batch, step: int, seed: int, config: RLConfig
) -> dict[str, float]:
    """Runs the mu inner updates of outer step ``step`` (from 0), each on the whole batch.

    Returns:
        Metrics averaged over the inner updates. ``logprob_gap`` is of the first one: the mean
        |l_learner - l_generator| before any update, 0 up to rounding when the rollouts are on-policy.
        Without any group left after skipping, no update is made and ``updates`` is 0.
    """
    informative = np.flatnonzero((batch.advantages != 0).any(dim=1).cpu().numpy())
    metrics = {
        "groups_with_advantage": len(informative) / len(batch.prompts),
        "updates": 0.0,
        "nonfinite": 0.0,
    }
    if config.skip_zero_advantage:
        batch = batch.select(informative)
    if not batch.prompts:
        return metrics
    rows = []
    for inner in range(config.mu):
        update = accumulate_gradient(model, batch, inner, seed, config)
        rate = learning_rate(step * config.mu + inner, config.steps * config.mu, config.optimizer)
        norm, applied = optimizer_step(model, optimizer, rate, config.optimizer)
        metrics["updates"] += applied
        metrics["nonfinite"] += not applied
        rows.append(asdict(update) | {"grad_norm": norm, "learning_rate": rate})
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "gap"}
    return metrics | means | {"logprob_gap": rows[0]["gap"]}
