"""One inner update's gradient against one autograd pass over the paper's formula, token by token."""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators.estimator import Estimator, Group, GroupView, per_completion_view
from d1ray.diffusion.estimators.one_step import OneStep
from d1ray.diffusion.noise import prompt_mask
from d1ray.rl.algorithm import Algorithm, Loss
from d1ray.rl.algorithms.diffu_grpo import DiffuGRPO
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.update import accumulate_gradient

EOS, MASK, SEED = 0, 1, 5
PROMPTS = ((4, 11, 5, 2), (7, 3), (9, 9, 9, 8, 2, 6, 13))
ALGORITHM = DiffuGRPO(epsilon=0.2, beta=0.1, estimator=OneStep(prompt_mask_prob=0.4))


def settings(scope="group", probability=0.4, tokens=16384, **changes):
    estimator = OneStep(prompt_mask_prob=probability, mask_scope=scope)
    algorithm = ALGORITHM.model_copy(update={"estimator": estimator, **changes})
    return RLConfig(mu=2, algorithm=algorithm, micro_batch_tokens=tokens)


CONFIG = settings()


def normal(shape, key):
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape).astype(np.float32))


@pytest.fixture
def batch():
    """3 groups of 4 completions of 5 tokens; two in three have an EOS, some ratios are far off."""
    completions = np.random.default_rng(0).integers(2, 20, (3, 4, 5)).astype(np.int32)
    completions[:, 1, 2] = completions[:, 2, 4] = completions[0, 3, 0] = EOS
    scored = up_to_first_eos(completions, EOS)
    step_map = np.tile(np.arange(5, dtype=np.int32), (4, 1))
    return Batch(
        groups=tuple(
            Group(group_id, np.array(PROMPTS[g], np.int32), completions[g], step_map, scored[g])
            for g, group_id in enumerate((40, 41, 7))
        ),
        old=normal((3, 4, 2, 1, 5), 1) - 3,
        reference=normal((3, 4, 2, 1, 5), 2) - 3,
        advantages=normal((3, 4), 3),
    )


def gradient(model):
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return grads


def formula(model, batch, inner, scope):
    """The loss by loops: one forward per completion, its own sum per token, one mean at the end."""
    total, count = torch.zeros(()), 0
    for g, prompt in enumerate(PROMPTS):
        for i in range(4):
            key = (batch.groups[g].group_id, inner) + ((i,) if scope == "completion" else ())
            hidden = prompt_mask(len(prompt), 0.4, SEED, *key)
            ids = [MASK if h else int(t) for t, h in zip(prompt, hidden, strict=True)]
            logps = torch.log_softmax(model(torch.tensor([ids + [MASK] * 5]))[0, len(ids) :], dim=-1)
            for k in range(5):
                token = int(batch.groups[g].completions[i, k])
                new, old = logps[k, token], batch.old[g, i, inner, 0, k]
                reference, advantage = batch.reference[g, i, inner, 0, k], batch.advantages[g, i]
                ratio = torch.exp(new - old)
                limited = torch.clamp(ratio, 0.8, 1.2)
                kl = torch.exp(reference - new) - (reference - new) - 1
                total = total - torch.min(ratio * advantage, limited * advantage) + 0.1 * kl
                count += 1
                if token == EOS:
                    break
    return total / count


@pytest.mark.parametrize("scope", ["group", "completion"])
@pytest.mark.parametrize("inner", [0, 1])
def test_the_gradient_is_that_of_the_formula(model, batch, scope, inner):
    metrics = accumulate_gradient(model, batch, inner, SEED, settings(scope))
    ours = gradient(model)
    loss = formula(model, batch, inner, scope)
    loss.backward()
    theirs = gradient(model)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("scope", ["group", "completion"])
@pytest.mark.parametrize("tokens", [1, 30])
def test_the_micro_batch_size_does_not_change_the_gradient(model, batch, scope, tokens):
    expected_metrics = accumulate_gradient(model, batch, 0, SEED, settings(scope))
    expected = gradient(model)
    metrics = accumulate_gradient(model, batch, 0, SEED, settings(scope, tokens=tokens))
    assert (gradient(model) - expected).abs().max() < 1e-6 * max(1, float(expected.abs().max()))
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)


def test_a_micro_batch_holds_at_most_its_tokens(model, batch):
    # 3 rows of 7 + 5 = 12 tokens in group scope: 24 tokens are two rows at a time.
    sizes, hidden = [], model.hidden

    def noting(input_ids, *arguments, **keywords):
        sizes.append(len(input_ids))
        return hidden(input_ids, *arguments, **keywords)

    model.hidden = noting
    accumulate_gradient(model, batch, 0, SEED, settings(tokens=24))
    assert sizes == [2, 1]


def test_a_group_larger_than_a_micro_batch_is_split_by_completion(model, batch):
    # 4 rows of 9 tokens in completion scope: 18 tokens are two rows; each runs without, then with gradient.
    sizes, hidden = [], model.hidden

    def noting(input_ids, *arguments, **keywords):
        sizes.append((len(input_ids), torch.is_grad_enabled()))
        return hidden(input_ids, *arguments, **keywords)

    model.hidden = noting
    accumulate_gradient(model, batch.select(np.array([0])), 0, SEED, settings("completion", tokens=18))
    assert sizes == [(2, False), (2, False), (2, True), (2, True)]


class TwoHalves(Estimator):
    """Views: the even positions hidden, then the odd ones, each with its own weight."""

    name: Literal["two_halves"] = "two_halves"

    @property
    def views_per_update(self):
        return 2

    def views(self, group, mask_id, seed, inner) -> list[GroupView]:
        even = np.broadcast_to(np.arange(group.completions.shape[1]) % 2 == 0, group.completions.shape)
        return [
            per_completion_view(group, [group.prompt] * 4, hidden, weight * (hidden & group.scored), mask_id)
            for hidden, weight in ((even, np.float32(1)), (~even, np.float32(2)))
        ]


class Squared(Algorithm):
    """The square of the sequence's weighted log-probability: no sum over views."""

    estimators: ClassVar = ("two_halves",)
    mixes_views: ClassVar = True
    needs_old: ClassVar = False
    name: Literal["squared"] = "squared"
    estimator: TwoHalves = TwoHalves()

    def loss(self, terms) -> Loss:
        sequence = (terms.weights * terms.new).sum((0, -1))  # [n, G]
        value = (terms.advantages * sequence**2).sum() / terms.totals.completions
        return Loss(value, {"views": value.detach() * 0 + len(terms.new) / terms.totals.completions})


@pytest.mark.parametrize("tokens", [1, 16384])
def test_a_loss_that_mixes_views_gets_the_gradient_through_all_of_them(model, batch, tokens):
    config = CONFIG.model_copy(update={"algorithm": Squared(), "micro_batch_tokens": tokens})
    metrics = accumulate_gradient(model, replace(batch, old=None, reference=None), 0, SEED, config)
    ours, total = gradient(model), torch.zeros(())
    for g, prompt in enumerate(PROMPTS):
        for i in range(4):
            tokens_ = batch.groups[g].completions[i].tolist()
            sequence = torch.zeros(())
            for parity, weight in ((0, 1), (1, 2)):
                inputs = [MASK if k % 2 == parity else t for k, t in enumerate(tokens_)]
                logps = model(torch.tensor([[*prompt, *inputs]]))[0, len(prompt) :].log_softmax(-1)
                for k in range(parity, 5, 2):
                    if batch.groups[g].scored[i, k]:
                        sequence = sequence + weight * logps[k, tokens_[k]]
            total = total + batch.advantages[g, i] * sequence**2 / 12
    total.backward()
    theirs = gradient(model)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert "gap" not in metrics


def test_gradients_add_to_what_is_there(model, batch):
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    once = gradient(model)
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    assert torch.allclose(gradient(model), 2 * once, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("probability", [0.0, 1.0])  # the two at which all masks of a group are equal
def test_both_scopes_agree_when_the_masks_do(model, batch, probability):
    gradients = []
    for scope in ("group", "completion"):
        accumulate_gradient(model, batch, 0, SEED, settings(scope, probability))
        gradients.append(gradient(model))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_the_order_of_the_groups_does_not_change_the_gradient(model, batch):
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    expected = gradient(model)
    accumulate_gradient(model, batch.select(np.array([2, 0, 1])), 0, SEED, CONFIG)
    assert (gradient(model) - expected).norm() < 1e-5 * expected.norm()


def test_each_inner_update_reads_its_own_old_log_probabilities(model, batch):
    # Spoiling inner update 1's column must not show in inner update 0.
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    expected = gradient(model)
    batch.old[:, :, 1] = float("nan")
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    assert torch.equal(gradient(model), expected)


def test_tokens_after_the_eos_do_not_reach_the_gradient(model, batch):
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    expected = gradient(model)
    for g, group in enumerate(batch.groups):
        group.completions[~group.scored] = 17
        batch.old[g].masked_fill_(torch.from_numpy(~group.scored)[:, None, None], float("-inf"))
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    assert torch.equal(gradient(model), expected)


def test_equal_rewards_without_kl_give_a_zero_gradient(model, batch):
    even = replace(batch, advantages=torch.zeros(3, 4), reference=None)
    accumulate_gradient(model, even, 0, SEED, settings(beta=0.0))
    assert (gradient(model) == 0).all()


def test_a_positive_advantage_raises_its_tokens_and_a_negative_one_lowers_them(model, batch):
    # From old == new, a small step along -gradient moves the mean log-probability by the sign of A.
    config = settings(beta=0.0, probability=0.0)

    def logp():
        ids = torch.tensor([[*PROMPTS[0]] + [MASK] * 5])
        with torch.no_grad():
            logps = model(ids)[0, 4:].log_softmax(-1)
        return logps[torch.arange(5), torch.from_numpy(batch.groups[0].completions[0]).long()]

    for sign in (1.0, -1.0):
        before = logp()
        advantages = torch.zeros(1, 4)
        advantages[0, 0] = sign
        old = before.expand(1, 4, 2, 1, 5).clone()
        one = replace(batch.select(np.array([0])), old=old, reference=None, advantages=advantages)
        accumulate_gradient(model, one, 0, SEED, config)
        with torch.no_grad():
            for p in model.parameters():
                p -= 1e-3 * p.grad
        model.zero_grad()
        assert sign * float((logp() - before).mean()) > 0
