"""Estimators and the inner update with a Dream model, whose outputs are shifted, against separate forwards.

Prompts are ragged, so joined views are left-padded.
"""

import numpy as np
import pytest
import torch

from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators import load_estimator
from d1ray.diffusion.estimators.estimator import Group
from d1ray.rl.algorithms.unigrpo import UniGRPO
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.likelihoods import group_logps
from d1ray.rl.update import accumulate_gradient

EOS, MASK, SEED = 0, 1, 5
PROMPTS = ((7,), (4, 11, 5, 2), (9, 9, 8, 2, 6, 13))
EPSILON, BETA = 0.2, 0.1


@pytest.fixture
def model(make_dream):
    return make_dream(2)


def groups():
    """3 groups of 3 completions of 5 tokens, some with an EOS."""
    completions = np.random.default_rng(0).integers(2, 20, (3, 3, 5)).astype(np.int32)
    completions[:, 1, 2] = completions[0, 2, 0] = EOS
    steps = np.tile(np.array([2, 0, 1, 3, 1], np.int32), (3, 1))
    return [
        Group(40 + g, np.array(prompt, np.int32), tokens, steps, up_to_first_eos(tokens, EOS))
        for g, (prompt, tokens) in enumerate(zip(PROMPTS, completions, strict=True))
    ]


def separate(model, view, completions):
    """``[G, L]``: each completion's own unpadded forward, 0 where the view does not score."""
    rows = []
    for completion, row, weights in zip(completions, view.row_of, view.weights, strict=True):
        ids = [*map(int, view.prompts[row]), *map(int, view.inputs[row])]
        logps = model(torch.tensor([ids]))[0, -len(completion) :].log_softmax(-1)
        picked = logps.gather(1, torch.from_numpy(completion).long()[:, None])[:, 0]
        rows.append(torch.where(torch.from_numpy(weights != 0), picked, 0.0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "one_step", "prompt_mask_prob": 0.4, "mask_scope": "completion"},
        {"name": "coupled"},
        {"name": "elbo"},
        {"name": "trajectory", "segments": 3},
    ],
    ids=lambda settings: settings["name"],
)
@pytest.mark.parametrize("tokens", [1, 10_000])
def test_an_estimators_log_probabilities_are_those_of_separate_forwards(model, settings, tokens):
    for group in groups():
        views = load_estimator(settings).views(group, MASK, SEED, 0)
        ours = group_logps(model, group, views, tokens)
        with torch.no_grad():
            theirs = torch.stack([separate(model, view, group.completions) for view in views], dim=1)
        assert np.abs(ours - theirs.numpy()).max() < 1e-5


def unigrpo_loss(model, batch, algorithm):
    """A mean over each view's scored tokens, then over completions and views."""
    total = torch.zeros(())
    for g, group in enumerate(batch.groups):
        for k, view in enumerate(algorithm.estimator.views(group, MASK, SEED, 0)):
            new, scored = separate(model, view, group.completions), torch.from_numpy(view.weights != 0)
            old, reference = batch.old[g, :, 0, k], batch.reference[g, :, 0, k]
            advantage = batch.advantages[g][:, None]
            ratio = (new - old).exp()
            gain = torch.min(ratio * advantage, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage)
            kl = (reference - new).exp() - (reference - new) - 1
            per_completion = ((gain - BETA * kl) * scored).sum(-1) / scored.sum(-1)
            total = total - per_completion.sum()
    return total / (9 * algorithm.estimator.views_per_update)


def gradient(model):
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return grads


@pytest.mark.parametrize("tokens", [10_000, 24, 1])
def test_the_inner_updates_value_and_gradient_are_those_of_separate_forwards(model, tokens):
    algorithm = UniGRPO(
        epsilon=EPSILON, beta=BETA, estimator=load_estimator({"name": "random_ratio", "samples": 2})
    )
    batch_groups, noise = tuple(groups()), np.random.default_rng(1)
    logps = np.stack(
        [
            group_logps(model, group, algorithm.estimator.views(group, MASK, SEED, 0), 10_000)[:, None]
            for group in batch_groups
        ]
    )  # [n, G, 1, K, L]

    def near():
        return torch.from_numpy((logps + 0.3 * noise.standard_normal(logps.shape)).astype(np.float32))

    advantages = torch.from_numpy(noise.standard_normal((3, 3)).astype(np.float32))
    batch = Batch(batch_groups, near(), near(), advantages)
    config = RLConfig(mu=1, algorithm=algorithm, micro_batch_tokens=tokens)
    metrics = accumulate_gradient(model, batch, 0, SEED, config)
    ours = gradient(model)
    loss = unigrpo_loss(model, batch, algorithm)
    loss.backward()
    theirs = gradient(model)
    assert 0 < metrics["clip_fraction"] < 1
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
