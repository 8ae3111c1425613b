"""How far fast decoding is from exact decoding, and the exact decoding to fall back to.

Parallel decoding (threshold, factor, entropy bound) draws tokens together that are drawn apart on the fixed
schedule; a cache predicts from stale keys and values; guidance draws from other logits. Each makes the
sampler's log-probabilities stray from the policy that is trained, and d1's authors report that this can
destabilise online RL. The gap measures it: the same tokens, in the same order, at the fixed schedule's pace,
each predicted from the exact state before its step:

    gap = mean over tokens of |log p(sampler) - log p(exact)|      in nats

Shapes: G completions, L completion length.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.estimators.trajectory import Trajectory
from d1ray.diffusion.schedule import commit_counts
from d1ray.models.model import DiffusionLM
from d1ray.rl.likelihoods import group_logps


def is_fast(sampling: SamplerConfig) -> bool:
    """Whether the sampler's log-probabilities can differ from exact decoding's."""
    return not sampling.scheduled or sampling.cache != "none" or sampling.cfg_scale > 0


def exact_sampling(sampling: SamplerConfig) -> SamplerConfig:
    """The exact counterpart of a fast decoding: without cache or guidance, on a fixed schedule.

    Adaptive decoding becomes ``low_confidence`` with the same ``steps``, or with a token a step where
    these do not divide among the blocks.
    """
    if sampling.scheduled:
        kept = ["gen_length", "steps", "block_length", "temperature", "decoding", "schedule"]
        kept += ["position_temperature"]
        return SamplerConfig(**{name: getattr(sampling, name) for name in kept})
    length, steps = sampling.gen_length, sampling.steps
    fits = steps <= length and steps % (length // sampling.block_length) == 0
    return SamplerConfig(
        gen_length=length,
        steps=steps if fits else length,
        block_length=sampling.block_length,
        temperature=sampling.temperature,
    )


def mismatch(
    model: DiffusionLM,
    group: Group,
    sampler_logps: NDArray[np.float32],
    sampling: SamplerConfig,
    micro_batch_tokens: int,
) -> float:
    """The gap in nats a token of completions ``[G, L]``, over tokens up to the first EOS.

    Args:
        model: the policy that sampled.
        group: the completions.
        sampler_logps: ``[G, L]`` as the sampler gave them.
        sampling: the fast decoding.
        micro_batch_tokens: tokens per forward.
    """
    steps = exact_steps(group.step_map, sampler_logps, exact_sampling(sampling))
    replay = Trajectory(segments=int(steps.max()) + 1)
    views = replay.views(replace(group, step_map=steps), model.config.mask_token_id, seed=0, inner=0)
    exact = group_logps(model, group, views, micro_batch_tokens).sum(axis=1)  # [G, L]
    return float(np.abs(sampler_logps - exact)[group.scored].mean())


def exact_steps(
    step_map: NDArray[np.int32], logps: NDArray[np.float32], exact: SamplerConfig
) -> NDArray[np.int32]:
    """The steps ``[G, L]`` at which the fixed schedule commits the same tokens in the same order.

    Within a block tokens are ordered by the step that committed them, then by falling log-probability;
    -1 stays -1.
    """
    counts = np.array(commit_counts(exact))
    first_ranks = np.cumsum(counts)  # ranks below first_ranks[s] are committed by step s
    result = np.full_like(step_map, -1)
    for row in range(len(step_map)):
        for block in range(exact.gen_length // exact.block_length):
            columns = np.arange(block * exact.block_length, (block + 1) * exact.block_length)
            columns = columns[step_map[row, columns] >= 0]
            order = np.lexsort((columns, -logps[row, columns], step_map[row, columns]))
            step = np.searchsorted(first_ranks, np.arange(len(columns)), side="right")
            result[row, columns[order]] = block * len(counts) + step
    return result
