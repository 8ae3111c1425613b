"""What log-probabilities cost when a group shares its prompt masks, beside a mask for each completion.

Ratios of CPU seconds, measured in turns in one run on one thread.
"""

import statistics
import time

import numpy as np
import pytest

from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.estimators.one_step import OneStep
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig
from d1ray.rl.likelihoods import group_logps

PROMPT, LENGTH, GROUP, MASKS, ROUNDS = 128, 256, 6, 12, 3
TARGET = 0.2
MICRO_BATCH_TOKENS = 6 * (PROMPT + LENGTH)


@pytest.mark.timeout(600)
def test_masks_shared_by_the_group():
    config = LLaDAConfig(
        d_model=256,
        n_layers=4,
        n_heads=8,
        mlp_hidden_size=768,
        vocab_size=2048,
        max_sequence_length=1024,
        mask_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = initialise(LLaDA(config), 0).eval()
    draw = np.random.default_rng(0)
    completions = draw.integers(2, 2048, (GROUP, LENGTH)).astype(np.int32)
    group = Group(
        group_id=0,
        prompt=draw.integers(2, 2048, PROMPT).astype(np.int32),
        completions=completions,
        step_map=np.zeros_like(completions),
        scored=np.ones(completions.shape, bool),
    )

    def cpu_seconds(scope):
        estimator = OneStep(mask_scope=scope)
        start = time.process_time()
        views = [view for inner in range(MASKS) for view in estimator.views(group, 1, 0, inner)]
        group_logps(model, group, views, MICRO_BATCH_TOKENS)
        return time.process_time() - start

    cpu_seconds("group")  # the first passes touch memory for the first time
    seconds = {"group": [], "completion": []}
    for _ in range(ROUNDS):
        for scope, measured in seconds.items():
            measured.append(cpu_seconds(scope))
    ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
    print(f"\n{MASKS} masks, group of {GROUP}, prompt {PROMPT}, {LENGTH} tokens, one thread, {ROUNDS} rounds")
    print(f"per completion {statistics.median(seconds['completion']):.2f} CPU s, shared by the group")
    print(f"{statistics.median(seconds['group']):.2f} CPU s: ratio {statistics.median(ratios):.3f}")
    print(f"({min(ratios):.3f} to {max(ratios):.3f}); target {TARGET}")
    assert statistics.median(ratios) <= TARGET
