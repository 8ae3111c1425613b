"""Log-probabilities under the policy before the step, for groups that an older policy sampled.

The ratio and its clip refer to it, as ``Batch.old``; what the generators found stays as ``Batch.behaviour``
(decoupled PPO, ``d1ray.rl.clipped``).
"""

from dataclasses import replace

import numpy as np
import torch

from d1ray.config.rl import RLConfig
from d1ray.diffusion.likelihood import ViewLogps
from d1ray.models.model import DiffusionLM
from d1ray.models.sharding import ranks
from d1ray.rl.batch import Batch
from d1ray.rl.likelihoods import view_logps
from d1ray.rl.rounds import Idle, joined, rounds


def with_proximal(
    model: DiffusionLM, batch: Batch, seed: int, config: RLConfig, scorer: ViewLogps | None = None
) -> Batch:
    """The batch with ``old`` under ``model`` as it is now, of all inner updates; in the micro-batches that
    the updates take, so that a ratio before the first one is exactly 1.

    Several ranks call it with the same batch. Each finds ``old`` of those groups that are its own in
    ``accumulate_gradient``, and leaves the others'.
    """
    assert batch.old is not None
    estimator, mask_id = config.algorithm.estimator, model.config.mask_token_id
    scorer = scorer or ViewLogps(model)
    world, rank = ranks()
    old = batch.old.clone()
    for inner in range(config.mu):
        views = [estimator.views(group, mask_id, seed, inner) for group in batch.groups]
        idle = Idle(scorer, model, batch, views)
        for shares in rounds(batch, views, config, world):
            own = shares[rank]
            most = np.max([share.calls for share in shares], axis=0)
            with torch.no_grad():
                for k in range(estimator.views_per_update) if len(own.groups) else ():
                    view = joined(model, batch.select(own.groups), [views[g][k] for g in own.groups])
                    logps = view_logps(scorer, view, own.rows).unflatten(0, (len(own.groups), -1))
                    old[:, :, inner, k][torch.from_numpy(own.groups)] = logps
                idle.run(int(most.sum()) - sum(own.calls))
    return replace(batch, old=old, behaviour=batch.old)
