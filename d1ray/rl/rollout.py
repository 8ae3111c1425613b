"""Rollouts: sample a group's completions and, right after, the likelihoods its loss will need.

The policy that samples also computes the old and the reference log-probabilities under the mu prompt
masks, so the behaviour policy is exact however late the learner consumes the group.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from d1ray.config.rl import RLConfig
from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.estimators.estimator import Group, GroupView
from d1ray.diffusion.sampler import Samples, sample
from d1ray.models.chat import decode_completion
from d1ray.models.model import DiffusionLM
from d1ray.rl import schema
from d1ray.rl.likelihoods import group_logps, group_of
from d1ray.rl.mismatch import exact_sampling, is_fast, mismatch
from d1ray.rl.scoring import example_to_json
from d1ray.tasks.task import Example


@dataclass(frozen=True)
class Prompt:
    """One prompt as the sampler sees it; ``group_id`` keys all randomness of its completions."""

    group_id: int
    ids: tuple[int, ...]
    example: Example


@dataclass(frozen=True)
class Request:
    """What one generator call does: ``rollouts`` completions of each prompt, from the ``first`` one on.

    ``likelihoods`` asks for old and reference log-probabilities; evaluation leaves it None. In more
    ``parts`` it takes less memory at a time; on a CPU nothing else changes.
    """

    prompts: tuple[Prompt, ...]
    rollouts: int
    sampling: SamplerConfig
    seed: int
    likelihoods: RLConfig | None = None
    first: int = 0
    parts: int = 1


def generate(
    model: DiffusionLM,
    reference: AbstractContextManager[DiffusionLM] | None,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    incarnation: int,
    version: int,
    generator: int = -1,
    seconds_load: float = 0.0,
) -> tuple[pa.Table, dict[str, Any]]:
    """Runs a request: a ``schema.GENERATED`` table of ``len(prompts) * rollouts`` rows, and notes on how
    it was decoded (``sample_checked``).

    Args:
        reference: gives the reference model while it is needed: another model, or this one with another
            adapter.
        incarnation, version: of the policy, recorded.
        generator: who samples, recorded.
        seconds_load: how long loading the policy took just before, recorded.
    """
    started_at, started = time.time(), time.perf_counter()
    numbers = range(request.first, request.first + request.rollouts)
    rows = [(prompt, i) for prompt in request.prompts for i in numbers]
    seeds = [(request.seed, prompt.group_id, i) for prompt, i in rows]
    samples, notes = sample_checked(model, request, [prompt.ids for prompt, _ in rows], seeds)
    sampled = time.perf_counter()
    old: Sequence[object] = [[]] * len(rows)
    references: Sequence[object] = [[]] * len(rows)
    if request.likelihoods is not None:
        algorithm = request.likelihoods.algorithm
        budget = max(1, request.likelihoods.micro_batch_tokens // request.parts)
        used = algorithm.needs_old or algorithm.needs_reference
        views = views_of(model, request, samples) if used else []
        if algorithm.needs_old:
            old = likelihoods(model, views, budget)
        if algorithm.needs_reference:
            assert reference is not None
            with reference as other:
                references = likelihoods(other, views, budget)
    finished = time.perf_counter()
    eos = model.config.eos_token_id
    completions = samples.ids.cpu().numpy().astype(np.int32)
    table = pa.table(
        {
            "group_id": [prompt.group_id for prompt, _ in rows],
            "rollout": [i for _, i in rows],
            "incarnation": [incarnation] * len(rows),
            "policy_version": [version] * len(rows),
            "task": [prompt.example.task for prompt, _ in rows],
            "example": [example_to_json(prompt.example) for prompt, _ in rows],
            "prompt_ids": [prompt.ids for prompt, _ in rows],
            "completion_ids": list(completions),
            "step_map": list(samples.step_map.cpu().numpy()),
            "sampler_logps": list(samples.logps.cpu().numpy()),
            "old_logps": old,
            "reference_logps": references,
            "forwards": samples.forwards.cpu().numpy(),
            "text": [decode_completion(tokenizer, ids.tolist(), eos) for ids in completions],
            "generator": [generator] * len(rows),
            "started_generate": [started_at] * len(rows),
            "seconds_load": [seconds_load] * len(rows),
            "seconds_generate": [sampled - started] * len(rows),
            "seconds_logprob": [finished - sampled] * len(rows),
        },
        schema=schema.GENERATED,
    )
    return table, notes


def views_of(model: DiffusionLM, request: Request, samples: Samples) -> list[tuple[Group, list[GroupView]]]:
    """Every prompt's completions, with the K views of each of the mu inner updates in turn."""
    config, size = request.likelihoods, request.rollouts
    assert config is not None
    estimator, mask_id = config.algorithm.estimator, model.config.mask_token_id
    groups = [
        group_of(model, prompt.group_id, prompt.ids, samples, slice(index * size, (index + 1) * size))
        for index, prompt in enumerate(request.prompts)
    ]
    return [
        (
            group,
            [v for inner in range(config.mu) for v in estimator.views(group, mask_id, request.seed, inner)],
        )
        for group in groups
    ]


def likelihoods(
    model: DiffusionLM, views: Sequence[tuple[Group, list[GroupView]]], micro_batch_tokens: int
) -> list[list[NDArray[np.float32]]]:
    """Log-probabilities of every row in its group's views: ``[rows][M K, L]``."""
    return [list(row) for group, own in views for row in group_logps(model, group, own, micro_batch_tokens)]


def sample_in_parts(
    model: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    sampling: SamplerConfig,
    seeds: Sequence[tuple[int, ...]],
    parts: int,
) -> Samples:
    """As ``sample``, one part of the rows after the other: a row does not depend on the others."""
    size = -(-len(prompts) // parts)
    own = [
        sample(model, prompts[i : i + size], sampling, seeds[i : i + size])
        for i in range(0, len(prompts), size)
    ]
    if len(own) == 1:
        return own[0]
    names = [each.name for each in fields(Samples)]
    return Samples(**{name: torch.cat([getattr(one, name) for one in own]) for name in names})


def sample_checked(
    model: DiffusionLM, request: Request, prompts: Sequence[Sequence[int]], seeds: Sequence[tuple[int, ...]]
) -> tuple[Samples, dict[str, Any]]:
    """Samples, and measures fast decoding where it is due (``d1ray.rl.mismatch``).

    Above the limit everything is sampled again, exactly.

    Returns:
        The samples, and ``mismatch`` (nats a token, None if not measured) and ``resampled``.
    """
    samples = sample_in_parts(model, prompts, request.sampling, seeds, request.parts)
    config = request.likelihoods
    if config is None or not is_fast(request.sampling):
        return samples, {"mismatch": None, "resampled": False}
    watch, gaps = config.mismatch, []
    for index, prompt in enumerate(request.prompts):
        if prompt.group_id % watch.every == 0:
            first = index * request.rollouts
            rows = slice(first, first + min(request.rollouts, watch.rollouts))
            group = group_of(model, prompt.group_id, prompt.ids, samples, rows)
            logps = samples.logps[rows].cpu().numpy()
            gaps.append(mismatch(model, group, logps, request.sampling, config.micro_batch_tokens))
    gap = float(np.mean(gaps)) if gaps else None
    resampled = gap is not None and watch.limit is not None and gap > watch.limit
    if resampled:
        exact = exact_sampling(request.sampling)
        samples = sample_in_parts(model, prompts, exact, seeds, request.parts)
    return samples, {"mismatch": gap, "resampled": resampled}
