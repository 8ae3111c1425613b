"""The gap between fast and exact decoding: 0 where nothing strays, otherwise what a replay by hand gives."""

import numpy as np
import pytest
import torch

from d1ray.config.rl import MismatchConfig, RLConfig
from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.sampler import sample
from d1ray.rl.batch import up_to_first_eos
from d1ray.rl.likelihoods import group_of
from d1ray.rl.mismatch import exact_sampling, exact_steps, is_fast, mismatch
from d1ray.rl.rollout import Prompt, Request, sample_checked
from d1ray.tasks.task import Example

PROMPT = (4, 11, 5)
LENGTHS = {"gen_length": 8, "block_length": 4, "steps": 4}
EXACT = SamplerConfig(**LENGTHS, temperature=1.0)
FAST = {
    "threshold": SamplerConfig(**LENGTHS, temperature=1.0, decoding="threshold", threshold=0.05),
    "factor": SamplerConfig(**LENGTHS, temperature=1.0, decoding="factor", factor=5.0),
    "entropy_bound": SamplerConfig(**LENGTHS, temperature=1.0, decoding="entropy_bound", entropy_bound=9.0),
    "prefix": SamplerConfig(**LENGTHS, temperature=1.0, cache="prefix"),
    "dual": SamplerConfig(**LENGTHS, temperature=1.0, cache="dual"),
    "guidance": SamplerConfig(**LENGTHS, temperature=1.0, cfg_scale=1.5),
}


def measured(model, sampling, rows=6):
    samples = sample(model, [PROMPT] * rows, sampling, [(0, i) for i in range(rows)])
    group = group_of(model, 7, PROMPT, samples, slice(0, rows))
    return group, samples.logps.numpy(), mismatch(model, group, samples.logps.numpy(), sampling, 4096)


def by_hand(model, group: Group, logps, steps_per_token):
    """The gap by one forward per token: its exact state is every token of an earlier exact step."""
    gaps = []
    for completion, steps, scored, sampled in zip(
        group.completions, steps_per_token, group.scored, logps, strict=True
    ):
        for k in np.flatnonzero(scored):
            visible = [t if 0 <= s < steps[k] else 1 for t, s in zip(completion, steps, strict=True)]
            with torch.no_grad():
                exact = model(torch.tensor([[*PROMPT, *visible]]))[0, len(PROMPT) + k].log_softmax(-1)
            gaps.append(abs(float(sampled[k]) - float(exact[completion[k]])))
    return float(np.mean(gaps))


@pytest.mark.parametrize(
    ("sampling", "fast"), [(EXACT, False), *((sampling, True) for sampling in FAST.values())]
)
def test_what_can_stray_is_called_fast(sampling, fast):
    assert is_fast(sampling) == fast
    assert not is_fast(exact_sampling(sampling))


def test_exact_decoding_has_no_gap(model):
    assert measured(model, EXACT)[2] < 1e-5


@pytest.mark.parametrize("name", FAST)
def test_the_gap_is_that_of_a_replay_by_hand(model, name):
    group, logps, gap = measured(model, FAST[name])
    steps = exact_steps(group.step_map, logps, exact_sampling(FAST[name]))
    assert gap == pytest.approx(by_hand(model, group, logps, steps), abs=1e-5)
    assert gap > 1e-3  # this model's tokens depend on each other, or a test of 0 would pass


def test_exact_steps_are_the_fixed_schedules_pace_in_the_samplers_order():
    # Blocks of 4 in 2 steps: 2 tokens a step. Block 0 was committed at once, block 1 in steps 1 and 2.
    step_map = np.array([[0, 0, 0, 0, 2, 1, 2, 2]], np.int32)
    logps = np.array([[-3.0, -1.0, -2.0, -4.0, -0.5, -9.0, -0.1, -0.2]], np.float32)
    assert exact_steps(step_map, logps, EXACT).tolist() == [[1, 0, 0, 1, 3, 2, 2, 3]]


def test_tokens_that_no_step_committed_stay_uncommitted():
    step_map = np.array([[0, 1, 0, 1, -1, -1, -1, -1]], np.int32)
    steps = exact_steps(step_map, np.zeros((1, 8), np.float32), EXACT)
    assert steps.tolist() == [[0, 1, 0, 1, -1, -1, -1, -1]]


def test_only_tokens_up_to_the_first_eos_count(model):
    completions = np.array([[9, 0, 7, 7, 0, 0, 0, 0]], np.int32)
    step_map = np.array([[0, 0, 1, 1, -1, -1, -1, -1]], np.int32)
    group = Group(0, np.array(PROMPT, np.int32), completions, step_map, up_to_first_eos(completions, 0))
    logps = np.full((1, 8), -2.0, np.float32)
    logps[:, 2:] = 99.0
    steps = exact_steps(step_map, logps, EXACT)
    assert mismatch(model, group, logps, EXACT, 4096) == pytest.approx(
        by_hand(model, group, logps, steps), abs=1e-5
    )


def test_the_exact_counterpart_keeps_lengths_temperature_and_what_is_exact_already():
    dream = SamplerConfig(
        gen_length=8, block_length=8, steps=12, schedule="time", decoding="entropy", cache="dual"
    )
    assert exact_sampling(dream) == dream.model_copy(update={"cache": "none"})
    odd = SamplerConfig(gen_length=8, block_length=4, steps=99, decoding="threshold")
    assert exact_sampling(odd) == SamplerConfig(gen_length=8, block_length=4, steps=8)


def request(sampling, limit, every=2, groups=(4, 5)):
    example = Example("sudoku", "key", "prompt", {})
    config = RLConfig(
        group_size=2, sampling=sampling, mismatch=MismatchConfig(every=every, rollouts=2, limit=limit)
    )
    return Request(tuple(Prompt(g, PROMPT, example) for g in groups), 2, sampling, 0, config)


def checked(model, asked):
    prompts = [p.ids for p in asked.prompts for _ in range(2)]
    seeds = [(0, p.group_id, i) for p in asked.prompts for i in range(2)]
    return sample_checked(model, asked, prompts, seeds), sample(model, prompts, EXACT, seeds)


def test_above_the_limit_the_call_is_sampled_again_exactly(model):
    (samples, notes), exact = checked(model, request(FAST["threshold"], limit=1e-4))
    assert notes["resampled"] and notes["mismatch"] > 1e-4
    assert torch.equal(samples.ids, exact.ids)
    assert torch.equal(samples.step_map, exact.step_map)


def test_below_the_limit_or_without_one_fast_completions_are_kept(model):
    for limit in (1e4, None):
        (samples, notes), exact = checked(model, request(FAST["threshold"], limit))
        assert not notes["resampled"] and notes["mismatch"] > 1e-4
        assert not torch.equal(samples.step_map, exact.step_map)


def test_only_the_groups_that_are_due_are_measured(model):
    assert checked(model, request(FAST["dual"], 1e-9, groups=(5, 7)))[0][1] == {
        "mismatch": None,
        "resampled": False,
    }


def test_exact_decoding_is_not_measured(model):
    assert checked(model, request(EXACT, 1e-9))[0][1]["mismatch"] is None
