"""One learning step: mu updates, each at its learning rate, or none when there is nothing to learn."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators.estimator import Group
from d1ray.rl.algorithm import Loss
from d1ray.rl.algorithms.diffu_grpo import DiffuGRPO
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.learning import learn
from d1ray.rl.optimizer import adamw, optimizer_step
from d1ray.rl.update import accumulate_gradient

EOS, SEED = 0, 5
CONFIG = RLConfig(
    steps=4,
    mu=3,
    algorithm=DiffuGRPO(beta=0),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", weight_decay=0.1),
)
FILTERED = CONFIG.model_copy(update={"skip_zero_advantage": True})


@pytest.fixture
def batch():
    """3 groups of 2 completions of 4 tokens; the rewards of the second are equal."""
    draw = np.random.default_rng(0)
    completions = draw.integers(2, 20, (3, 2, 4)).astype(np.int32)
    scored, step_map = up_to_first_eos(completions, EOS), np.zeros((2, 4), np.int32)
    prompts = ([4, 11], [7], [9, 9, 8])
    return Batch(
        groups=tuple(
            Group(g, np.array(prompts[g], np.int32), completions[g], step_map, scored[g]) for g in range(3)
        ),
        old=torch.from_numpy(draw.standard_normal((3, 2, 3, 1, 4)).astype(np.float32)) - 3,
        reference=None,
        advantages=torch.tensor([[0.5, -0.5], [0.0, 0.0], [-1.0, 1.0]]),
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def learned(model, batch, step=0, config=CONFIG):
    metrics = learn(model, adamw(model, config.optimizer), batch, step, SEED, config)
    return metrics, weights(model)


def test_a_step_is_mu_updates_at_their_scheduled_rates(make_model, batch):
    # Step 2 of 4 with mu 3: updates 6, 7 and 8 of 12; linear to 0 at update 11: 5/11, 4/11, 3/11 of 1e-3.
    model, by_hand = make_model(), make_model()
    metrics, after = learned(model, batch, step=2)
    optimizer = adamw(by_hand, CONFIG.optimizer)
    for inner, elevenths in enumerate((5, 4, 3)):
        accumulate_gradient(by_hand, batch, inner, SEED, CONFIG)
        optimizer_step(by_hand, optimizer, 1e-3 * elevenths / 11, CONFIG.optimizer)
    assert torch.allclose(after, weights(by_hand), rtol=0, atol=1e-7)
    assert metrics["updates"] == 3
    assert metrics["learning_rate"] == pytest.approx(1e-3 * 4 / 11)


def test_when_all_groups_are_even_no_weight_changes_by_a_bit_and_a_warning_says_why(model, batch, caplog):
    before = weights(model)
    with caplog.at_level(logging.WARNING):
        metrics, after = learned(model, replace(batch, advantages=torch.zeros(3, 2)), step=3, config=FILTERED)
    assert torch.equal(after, before)
    assert metrics == {"updates": 0, "nonfinite": 0, "groups_with_advantage": 0, "empty_batches": 1}
    assert "step 3: no update, because in each of the 3 groups all rewards are equal" in caplog.text


def test_an_even_group_is_skipped_as_if_it_were_not_there(make_model, batch, caplog):
    metrics, skipped = learned(make_model(), batch, config=FILTERED)
    _, without = learned(make_model(), batch.select(np.array([0, 2])))
    assert torch.equal(skipped, without)
    assert metrics["groups_with_advantage"] == pytest.approx(2 / 3)
    assert metrics["empty_batches"] == 0
    assert not caplog.records


def test_unless_skipped_an_even_group_counts_in_the_mean(make_model, batch):
    # Without KL its tokens add nothing to the sum but 8 of 24 to the count: the gradient is 2/3 as long.
    with_even, without = make_model(), make_model()
    accumulate_gradient(with_even, batch, 0, SEED, CONFIG)
    accumulate_gradient(without, batch.select(np.array([0, 2])), 0, SEED, CONFIG)
    for ours, theirs in zip(with_even.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad * 2 / 3, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_counted_and_not_applied(model, batch):
    before = weights(model)
    batch.old[0, 0, :, 0] = float("nan")
    metrics, after = learned(model, batch)
    assert torch.equal(after, before)
    assert (metrics["updates"], metrics["nonfinite"]) == (0, 3)


def test_a_loss_that_is_not_finite_is_not_applied_even_if_its_gradient_is(model, batch, monkeypatch):
    def infinite(self, terms):
        return Loss(terms.weighted(terms.new).sum() + torch.inf, {})

    before = weights(model)
    monkeypatch.setattr(DiffuGRPO, "loss", infinite)
    metrics, after = learned(model, batch)
    assert torch.equal(after, before)
    assert (metrics["updates"], metrics["nonfinite"]) == (0, 3)


def test_one_bad_inner_update_leaves_the_others(model, batch):
    before = weights(model)
    batch.old[0, 0, 1, 0] = float("nan")
    metrics, after = learned(model, batch)
    assert not torch.equal(after, before)
    assert after.isfinite().all()
    assert (metrics["updates"], metrics["nonfinite"]) == (2, 1)


def test_learning_twice_from_the_same_start_is_bit_identical(make_model, batch):
    assert torch.equal(learned(make_model(), batch)[1], learned(make_model(), batch)[1])


def test_the_gap_reported_is_that_before_the_first_update(model, batch):
    metrics, _ = learned(model, batch, config=CONFIG.model_copy(update={"mu": 1}))
    assert metrics["logprob_gap"] > 0.1  # these old log-probabilities are made up
    assert "gap" not in metrics
