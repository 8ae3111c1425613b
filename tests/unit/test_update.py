"""One inner update's gradient against one autograd pass over the paper's formula, token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d1ray.config import RLConfig, SamplerConfig
from d1ray.diffusion import prompt_mask
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.update import accumulate_gradient, prompt_masks

EOS, MASK, SEED = 0, 1, 5
PROMPTS = ((4, 11, 5, 2), (7, 3), (9, 9, 9, 8, 2, 6, 13))
CONFIG = RLConfig(mu=2, epsilon=0.2, beta=0.1, prompt_mask_prob=0.4, sampling=SamplerConfig())


def normal(shape, key):
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape).astype(np.float32))


@pytest.fixture
def batch():
    """3 groups of 4 completions of 5 tokens; two in three have an EOS, some ratios are far off."""
    completions = torch.from_numpy(np.random.default_rng(0).integers(2, 20, (3, 4, 5)))
    completions[:, 1, 2] = completions[:, 2, 4] = completions[0, 3, 0] = EOS
    return Batch(
        group_ids=(40, 41, 7),
        prompts=tuple(np.array(prompt, np.int32) for prompt in PROMPTS),
        completions=completions,
        scored=up_to_first_eos(completions, EOS),
        old=normal((3, 4, 2, 5), 1) - 3,
        reference=normal((3, 4, 2, 5), 2) - 3,
        advantages=normal((3, 4), 3),
    )


def gradient(model):
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return grads


def formula(model, batch, inner, config):
    """The loss by loops: one forward per completion, its own sum per token, one mean at the end."""
    total, count = torch.zeros(()), 0
    for g, prompt in enumerate(batch.prompts):
        for i in range(4):
            key = (batch.group_ids[g], inner) + ((i,) if config.mask_scope == "completion" else ())
            hidden = prompt_mask(len(prompt), config.prompt_mask_prob, SEED, *key)
            ids = [MASK if h else int(t) for t, h in zip(prompt, hidden, strict=True)]
            logps = torch.log_softmax(model(torch.tensor([ids + [MASK] * 5]))[0, len(ids) :], dim=-1)
            for k in range(5):
                token = int(batch.completions[g, i, k])
                new, old = logps[k, token], batch.old[g, i, inner, k]
                reference, advantage = batch.reference[g, i, inner, k], batch.advantages[g, i]
                ratio = torch.exp(new - old)
                limited = torch.clamp(ratio, 1 - config.epsilon, 1 + config.epsilon)
                kl = torch.exp(reference - new) - (reference - new) - 1
                total = total - torch.min(ratio * advantage, limited * advantage) + config.beta * kl
                count += 1
                if token == EOS:
                    break
    return total / count, count


@pytest.mark.parametrize("scope", ["group", "completion"])
@pytest.mark.parametrize("inner", [0, 1])
def test_the_gradient_is_that_of_the_formula(model, batch, scope, inner):
    config = CONFIG.model_copy(update={"mask_scope": scope})
    metrics = accumulate_gradient(model, batch, inner, SEED, config)
    ours = gradient(model)
    loss, count = formula(model, batch, inner, config)
    loss.backward()
    theirs = gradient(model)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
    assert metrics.scored_tokens == count


@pytest.mark.parametrize("scope", ["group", "completion"])
@pytest.mark.parametrize("tokens", [1, 30])
def test_the_micro_batch_size_does_not_change_the_gradient(model, batch, scope, tokens):
    whole = CONFIG.model_copy(update={"mask_scope": scope})
    parts = whole.model_copy(update={"micro_batch_tokens": tokens})
    expected_metrics = accumulate_gradient(model, batch, 0, SEED, whole)
    expected = gradient(model)
    metrics = accumulate_gradient(model, batch, 0, SEED, parts)
    assert (gradient(model) - expected).abs().max() < 1e-6 * max(1, float(expected.abs().max()))
    for name, value in vars(expected_metrics).items():
        assert getattr(metrics, name) == pytest.approx(value, rel=1e-5)


def test_a_micro_batch_holds_at_most_its_tokens(model, batch):
    # 3 rows of 7 + 5 = 12 tokens in group scope: 24 tokens are two rows at a time.
    sizes, hidden = [], model.hidden

    def noting(input_ids, attention_mask=None):
        sizes.append(len(input_ids))
        return hidden(input_ids, attention_mask)

    model.hidden = noting
    accumulate_gradient(model, batch, 0, SEED, CONFIG.model_copy(update={"micro_batch_tokens": 24}))
    assert sizes == [2, 1]


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
        changes = {"mask_scope": scope, "prompt_mask_prob": probability}
        accumulate_gradient(model, batch, 0, SEED, CONFIG.model_copy(update=changes))
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
    batch.completions[~batch.scored] = 17
    batch.old.masked_fill_(~batch.scored[:, :, None], float("-inf"))
    accumulate_gradient(model, batch, 0, SEED, CONFIG)
    assert torch.equal(gradient(model), expected)


def test_equal_rewards_without_kl_give_a_zero_gradient(model, batch):
    even = replace(batch, advantages=torch.zeros(3, 4), reference=None)
    accumulate_gradient(model, even, 0, SEED, CONFIG.model_copy(update={"beta": 0.0}))
    assert (gradient(model) == 0).all()


def test_a_positive_advantage_raises_its_tokens_and_a_negative_one_lowers_them(model, batch):
    # From old == new, a small step along -gradient moves the mean log-probability by the sign of A.
    config = CONFIG.model_copy(update={"beta": 0.0, "prompt_mask_prob": 0.0})

    def logp():
        ids = torch.tensor([[*PROMPTS[0]] + [MASK] * 5])
        with torch.no_grad():
            logps = model(ids)[0, 4:].log_softmax(-1)
        return logps[torch.arange(5), batch.completions[0, 0]]

    for sign in (1.0, -1.0):
        before = logp()
        advantages = torch.zeros(1, 4)
        advantages[0, 0] = sign
        old = before.expand(1, 4, 2, 5).clone()
        one = replace(batch.select(np.array([0])), old=old, reference=None, advantages=advantages)
        accumulate_gradient(model, one, 0, SEED, config)
        with torch.no_grad():
            for p in model.parameters():
                p -= 1e-3 * p.grad
        model.zero_grad()
        assert sign * float((logp() - before).mean()) > 0


def test_a_group_shares_one_mask_or_each_completion_has_its_own():
    group = prompt_masks(50, 3, 1, 4, SEED, CONFIG)
    own = prompt_masks(50, 3, 1, 4, SEED, CONFIG.model_copy(update={"mask_scope": "completion"}))
    assert len(group) == 1
    assert len({mask.tobytes() for mask in own}) == len(own) == 4
