"""Truncated importance weights of groups that an older policy sampled (``rl.importance_cap``).

By hand, tokens: epsilon = .5, cap 1.5, advantages 2 and -1; the last token of row 1 is not scored.

    new - old           ln 1.2, ln 2      0
    old - behaviour     ln 1.25, ln 4     -ln 2
    w                   1.25, 1.5t        1/2             t: truncated
    J                   2.4, 3c           -1              c: clipped, around old
    loss = -(1.25 x 2.4 + 1.5 x 3 - 1/2) / 3 = -7/3
    3 x d loss / d new = -w rho A unless clipped: -3, 0 and 1/2

Completions: epsilon = .2, cap 3; n = 2 and 1, every scored token weighs 1.

    l - l_old           2 ln 1.1          0
    l_old - l_behaviour ln 4              -ln 4
    rho, J              1.1, 2.2          1, -1
    w                   exp(ln 4 / 2) = 2 1/4
    loss = -(2 x 2.2 - 1/4) / 2 = -2.075
    d loss / d new = -w rho A / n / 2: -1.1, -1.1 and 1/8
"""

from dataclasses import replace
from math import log, nan

import numpy as np
import pytest
import torch

from d1ray.config.kinds import load_algorithm
from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators.estimator import Group
from d1ray.rl.algorithm import Terms, Totals
from d1ray.rl.algorithms.diffu_grpo import DiffuGRPO
from d1ray.rl.algorithms.espo import ESPO
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.learning import learn
from d1ray.rl.likelihoods import group_logps
from d1ray.rl.optimizer import adamw
from d1ray.rl.proximal import with_proximal
from d1ray.rl.update import accumulate_gradient

EOS, MASK, SEED, MU = 0, 1, 5, 2


def terms_of(new_old, old_behaviour, cap):
    """One view of two completions of two tokens, of which the last one is not scored."""
    scored = torch.tensor([[[True, True], [True, False]]])
    old = torch.full((1, 1, 2, 2), -1.5, dtype=torch.float64)
    return Terms(
        new=(old + torch.tensor(new_old, dtype=torch.float64)).requires_grad_(),
        old=old,
        reference=None,
        weights=scored[None].double(),
        scored=scored,
        advantages=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        totals=Totals(groups=1, completions=2, tokens=3, view_tokens=3),
        behaviour=old - torch.tensor(old_behaviour, dtype=torch.float64),
        importance_cap=cap,
    )


def test_tokens_are_clipped_around_the_policy_before_the_step_and_weighted_to_the_one_that_sampled():
    terms = terms_of([[log(1.2), log(2)], [0, nan]], [[log(1.25), log(4)], [-log(2), nan]], cap=1.5)
    loss = DiffuGRPO(epsilon=0.5, beta=0).loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-7 / 3, abs=1e-6)
    assert terms.new.grad[0, 0].tolist() == [pytest.approx([-1, 0]), pytest.approx([1 / 6, 0])]
    metrics = {name: float(value) for name, value in loss.metrics.items()}
    assert metrics == pytest.approx(
        {"importance_mean": 3.25 / 3, "importance_truncated": 1 / 3, "kl": 0, "clip_fraction": 1 / 3}
    )


@pytest.mark.parametrize(("cap", "weight"), [(3.0, 2.0), (1.5, 1.5)])
def test_a_completion_has_one_weight_of_its_elbo_per_token(cap, weight):
    half = log(1.1)
    terms = terms_of([[half, half], [0, nan]], [[log(4), 0], [-log(4), nan]], cap)
    loss = ESPO(epsilon=0.2, beta=0).loss(terms)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-(weight * 2.2 - 0.25) / 2, abs=1e-6)
    away = -0.55 * weight
    assert terms.new.grad[0, 0].tolist() == [pytest.approx([away, away]), pytest.approx([1 / 8, 0])]
    assert float(loss.metrics["importance_mean"]) == pytest.approx((weight + 0.25) / 2)
    assert float(loss.metrics["importance_truncated"]) == (0.5 if weight == cap else 0)


# Learning steps of a model


def config_of(name="diffu_grpo", cap=2.0, tokens=16384, **options):
    return RLConfig(
        mu=MU,
        algorithm=load_algorithm({"name": name, **options}),
        importance_cap=cap,
        micro_batch_tokens=tokens,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )


def groups_of():
    """Three groups of 4 completions of 5 tokens; some end early."""
    draw = np.random.default_rng(0)
    completions = draw.integers(2, 20, (3, 4, 5)).astype(np.int32)
    completions[:, 1, 2] = completions[0, 3, 0] = EOS
    prompts, step_map = ([4, 11, 5, 2], [7, 3], [9, 9, 8]), np.tile(np.arange(5, dtype=np.int32), (4, 1))
    return [
        Group(
            g, np.array(prompts[g], np.int32), completions[g], step_map, up_to_first_eos(completions[g], EOS)
        )
        for g in range(3)
    ]


def logps_of(model, config):
    """``[n, G, M, K, L]`` by the generators' way."""
    estimator = config.algorithm.estimator
    rows = []
    for group in groups_of():
        views = [view for inner in range(MU) for view in estimator.views(group, MASK, SEED, inner)]
        rows.append(torch.from_numpy(group_logps(model, group, views, 16384)))
    return torch.stack(rows).unflatten(2, (MU, -1))


def batch_of(sampler, reference, config):
    """What generators with the policy ``sampler`` deliver."""
    advantages = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32))
    references = logps_of(reference, config) if config.algorithm.needs_reference else None
    return Batch(tuple(groups_of()), logps_of(sampler, config), references, advantages)


def near(model):
    """A policy that is a little away from ``model``."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = np.random.default_rng(index).standard_normal(tuple(parameter.shape))
            parameter += 0.02 * torch.from_numpy(noise.astype(np.float32))
    return model


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("tokens", [16384, 20, 1])
@pytest.mark.parametrize("name", ["diffu_grpo", "coupled_grpo", "espo"])
def test_all_inner_updates_refer_to_the_policy_before_the_step(make_model, name, tokens):
    config = config_of(name, tokens=tokens)
    batch = batch_of(near(make_model()), make_model(1), config)
    seen = with_proximal(make_model(), batch, SEED, config)
    assert torch.equal(seen.behaviour, batch.old)
    torch.testing.assert_close(seen.old, logps_of(make_model(), config), atol=1e-5, rtol=0)
    assert (seen.old - batch.old).abs().max() > 0.1


@pytest.mark.parametrize("tokens", [16384, 1])
def test_before_the_first_update_every_ratio_is_exactly_one(make_model, monkeypatch, tokens):
    config, seen = config_of(tokens=tokens, beta=0.0), []
    batch = batch_of(near(make_model()), make_model(1), config)
    weighed = with_proximal(make_model(), batch, SEED, config)
    loss = DiffuGRPO.loss
    monkeypatch.setattr(DiffuGRPO, "loss", lambda self, terms: seen.append(terms) or loss(self, terms))
    accumulate_gradient(make_model(), weighed, 0, SEED, config)
    assert seen
    assert all(torch.equal(terms.new.detach(), terms.old) for terms in seen)


@pytest.mark.parametrize("name", ["diffu_grpo", "espo"])
def test_on_policy_the_setting_changes_no_bit(make_model, name):
    results = []
    for cap in (None, 2.0):
        config, model = config_of(name, cap), make_model()
        batch = batch_of(make_model(), make_model(1), config)
        metrics = learn(model, adamw(model, config.optimizer), batch, 0, SEED, config)
        results.append((metrics, torch.cat([p.detach().flatten() for p in model.parameters()])))
    (off, without), (on, with_cap) = results
    assert on == off
    assert torch.equal(with_cap, without)


def test_a_stale_step_reports_its_weights_and_the_gap_to_the_policy_that_sampled(make_model):
    found = {}
    for cap in (None, 1.02):
        config, model = config_of(cap=cap), make_model()
        batch = batch_of(near(make_model()), make_model(1), config)
        found[cap] = learn(model, adamw(model, config.optimizer), batch, 0, SEED, config, stale=True)
    off, on = found[None], found[1.02]
    assert on["logprob_gap"] == pytest.approx(off["logprob_gap"], rel=1e-5)
    assert on["logprob_gap"] > 0.01
    weights = (logps_of(make_model(), config) - batch.old).exp()  # [n, G, M, K, L]
    scored = torch.from_numpy(np.stack([group.scored for group in batch.groups]))[:, :, None, None]
    scored = scored.expand_as(weights)
    assert on["importance_mean"] == pytest.approx(float(weights[scored].clamp(max=1.02).mean()), rel=1e-5)
    assert on["importance_truncated"] == pytest.approx(float((weights[scored] > 1.02).float().mean()))
    assert set(on) - set(off) == {"importance_mean", "importance_truncated"}


def test_without_cap_and_clip_the_gradient_is_the_plain_importance_weighted_one(make_model):
    """That of -mean over tokens of exp(l - l_behaviour) A, whose expectation over the policy that sampled is
    the policy gradient."""
    config = config_of(cap=1e6, epsilon=1e6, beta=0.0, estimator={"prompt_mask_prob": 0.0})
    batch = batch_of(near(make_model()), make_model(1), config)
    model, plain = make_model(), make_model()
    accumulate_gradient(model, with_proximal(model, batch, SEED, config), 0, SEED, config)
    total, count = torch.zeros(()), 0
    for g, group in enumerate(batch.groups):
        for i, completion in enumerate(group.completions):
            ids = torch.tensor([[*group.prompt.tolist(), *[MASK] * 5]])
            logps = plain(ids)[0, len(group.prompt) :].log_softmax(-1)
            for k in np.flatnonzero(group.scored[i]):
                ratio = (logps[k, int(completion[k])] - batch.old[g, i, 0, 0, k]).exp()
                total, count = total - ratio * batch.advantages[g, i], count + 1
    (total / count).backward()
    expected = gradient(plain)
    assert (gradient(model) - expected).norm() < 1e-5 * expected.norm()
    unweighted = make_model()
    accumulate_gradient(unweighted, replace(batch, old=logps_of(make_model(), config)), 0, SEED, config)
    assert (gradient(unweighted) - expected).norm() > 1e-2 * expected.norm()  # the weights do matter here
