"""Rollouts: sample a group's completions and, right after, the likelihoods its loss will need.

The policy that samples also computes the old and the reference log-probabilities under the mu prompt
masks, so the behaviour policy is exact however late the learner consumes the group.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from d1ray import schema
from d1ray.config import RLConfig, SamplerConfig
from d1ray.diffusion import Samples, sample
from d1ray.models import LLaDA, decode_completion
from d1ray.rl.update import group_logps, prompt_masks
from d1ray.tasks.scoring import example_to_json
from d1ray.tasks.task import Example


@dataclass(frozen=True)
class Prompt:
    """One prompt as the sampler sees it; ``group_id`` keys all randomness of its completions."""

    group_id: int
    ids: tuple[int, ...]
    example: Example


@dataclass(frozen=True)
class Request:
    """What one generator call does: ``rollouts`` completions of each prompt.

    ``likelihoods`` asks for old and reference log-probabilities; evaluation leaves it None.
    """

    prompts: tuple[Prompt, ...]
    rollouts: int
    sampling: SamplerConfig
    seed: int
    likelihoods: RLConfig | None = None


def generate(
    model: LLaDA,
    reference: LLaDA | None,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    incarnation: int,
    version: int,
) -> pa.Table:
    """Runs a request: a ``schema.GENERATED`` table of ``len(prompts) * rollouts`` rows."""
    started = time.perf_counter()
    rows = [(prompt, i) for prompt in request.prompts for i in range(request.rollouts)]
    seeds = [(request.seed, prompt.group_id, i) for prompt, i in rows]
    samples = sample(model, [prompt.ids for prompt, _ in rows], request.sampling, seeds)
    sampled = time.perf_counter()
    old: Sequence[object] = [[]] * len(rows)
    references: Sequence[object] = [[]] * len(rows)
    if request.likelihoods is not None:
        old = likelihoods(model, request, samples)
        if reference is not None:
            references = likelihoods(reference, request, samples)
    finished = time.perf_counter()
    eos = model.config.eos_token_id
    completions = samples.ids.cpu().numpy().astype(np.int32)
    return pa.table(
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
            "seconds_generate": [sampled - started] * len(rows),
            "seconds_logprob": [finished - sampled] * len(rows),
        },
        schema=schema.GENERATED,
    )


def likelihoods(model: LLaDA, request: Request, samples: Samples) -> list[list[NDArray[np.float32]]]:
    """One-step log-probabilities of every row under each of the mu prompt masks: ``[rows][mu][L]``."""
    config = request.likelihoods
    assert config is not None
    group_size = request.rollouts
    result: list[list[NDArray[np.float32]]] = []
    for index, prompt in enumerate(request.prompts):
        completions = samples.ids[index * group_size : (index + 1) * group_size]
        ids = np.array(prompt.ids, np.int32)
        masks = [
            prompt_masks(len(ids), prompt.group_id, inner, group_size, request.seed, config)
            for inner in range(config.mu)
        ]
        width = len(ids) + completions.shape[1]
        size = max(1, config.micro_batch_tokens // (width * len(masks[0])))
        parts = []
        with torch.inference_mode():
            for start in range(0, config.mu, size):
                some = masks[start : start + size]
                repeated = completions.expand(len(some), *completions.shape)
                parts.append(group_logps(model, (ids,) * len(some), some, repeated))
        logps = torch.cat(parts).transpose(0, 1).cpu().numpy()  # [G, mu, L]
        result.extend(list(row) for row in logps)
    return result
