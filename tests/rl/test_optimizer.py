"""AdamW's first steps and the learning-rate schedule, by hand."""

import math

import pytest
import torch
from torch import nn

from d1ray.config.optimizer import OptimizerConfig
from d1ray.rl.optimizer import adamw, learning_rate, move, optimizer_step


def schedule(**settings):
    config = OptimizerConfig(learning_rate=2.0, **settings)
    return lambda update, total=14: learning_rate(update, total, config)


@pytest.mark.parametrize("update", [0, 5, 13, 1000])
def test_a_constant_rate_is_constant(update):
    assert schedule()(update) == 2.0


@pytest.mark.parametrize(("update", "rate"), [(0, 0.5), (1, 1.0), (3, 2.0), (4, 2.0), (13, 2.0)])
def test_warm_up_rises_linearly_to_the_peak(update, rate):
    assert schedule(warmup_updates=4)(update) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("update", "rate"),
    # After 4 warm-up updates, 9 intervals from update 4 (peak 2) to update 13 (a tenth, .2): each loses .2.
    [(0, 0.5), (3, 2.0), (4, 2.0), (5, 1.8), (9, 1.0), (13, 0.2), (20, 0.2)],
)
def test_a_linear_rate_falls_from_the_peak_to_its_final_ratio(update, rate):
    assert schedule(schedule="linear", warmup_updates=4, final_ratio=0.1)(update) == pytest.approx(rate)


def test_a_linear_rate_may_end_at_zero():
    assert schedule(schedule="linear")(13) == 0


@pytest.mark.parametrize(("update", "total"), [(0, 1), (2, 3), (3, 4)])
def test_a_run_as_short_as_its_warm_up_has_a_positive_rate(update, total):
    assert schedule(schedule="linear", warmup_updates=3)(update, total) > 0


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0]]))
        self.norm = nn.Parameter(torch.tensor([4.0]))
        self.frozen = nn.Parameter(torch.tensor([[5.0]]), requires_grad=False)


def give_gradients(model, matrix=(3.0, -4.0), norm=12.0):
    model.matrix.grad, model.norm.grad = torch.tensor([matrix]), torch.tensor([norm])


CONFIG = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.99), max_grad_norm=1e9)


def test_the_first_step_moves_each_weight_by_the_rate_against_its_gradients_sign():
    # Bias-corrected, m / sqrt(v) = g / |g|. Decay first: 1 x (1 - .1 x .5) - .1 = .85; -2 x .95 + .1 = -1.8.
    # The norm is not decayed: 4 - .1 = 3.9.
    model = Small()
    give_gradients(model)
    optimizer_step(model, adamw(model, CONFIG), 0.1, CONFIG)
    assert model.matrix[0].tolist() == pytest.approx([0.85, -1.8])
    assert model.norm.tolist() == pytest.approx([3.9])
    assert model.frozen.tolist() == [[5.0]]


def test_the_second_step_uses_both_betas():
    # Gradients 3 then -1, no decay: m = .9 x .3 + .1 x -1 = .17, over 1 - .81 = .19;
    # v = .99 x .09 + .01 x 1 = .0991, over 1 - .9801 = .0199. Step .1 x (.17 / .19) / sqrt(.0991 / .0199).
    config = CONFIG.model_copy(update={"weight_decay": 0.0})
    model = Small()
    optimizer = adamw(model, config)
    for gradient in (3.0, -1.0):
        give_gradients(model, (gradient, 0.0), 0.0)
        optimizer_step(model, optimizer, 0.1, config)
    moved = 0.1 * (0.17 / 0.19) / math.sqrt(0.0991 / 0.0199)
    assert model.matrix[0, 0].item() == pytest.approx(1 - 0.1 - moved, abs=1e-6)


def test_the_rate_given_is_the_rate_used():
    model = Small()
    optimizer = adamw(model, CONFIG.model_copy(update={"weight_decay": 0.0}))
    give_gradients(model)
    optimizer_step(model, optimizer, 0.25, CONFIG)
    assert model.matrix[0].tolist() == pytest.approx([0.75, -1.75])


def test_gradients_are_clipped_to_their_common_norm():
    # Norm of (3, -4, 12) is 13; clipped to 1, Adam's first moment is .1 x g / 13.
    config = CONFIG.model_copy(update={"max_grad_norm": 1.0})
    model = Small()
    optimizer = adamw(model, config)
    give_gradients(model)
    assert optimizer_step(model, optimizer, 0.1, config) == (pytest.approx(13.0), True)
    assert optimizer.state[model.matrix]["exp_avg"][0].tolist() == pytest.approx(
        [0.3 / 13, -0.4 / 13], rel=1e-4
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_dropped(poison):
    model = Small()
    optimizer = adamw(model, CONFIG)
    give_gradients(model, norm=poison)
    norm, applied = optimizer_step(model, optimizer, 0.1, CONFIG)
    assert not applied
    assert not math.isfinite(norm)
    assert model.matrix.tolist() == [[1.0, -2.0]]
    assert not optimizer.state


def test_gradients_are_cleared_after_a_step_and_after_a_dropped_one():
    model = Small()
    optimizer = adamw(model, CONFIG)
    for norm in (1.0, math.nan):
        give_gradients(model, norm=norm)
        optimizer_step(model, optimizer, 0.1, CONFIG)
        assert model.matrix.grad is model.norm.grad is None


def test_only_matrices_are_decayed(model):
    decayed, kept = adamw(model, CONFIG).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_weights_and_both_moments_move_and_the_step_count_stays_on_the_cpu():
    # The device "meta" stands for any other: its tensors have no values.
    model = Small()
    optimizer = adamw(model, CONFIG)
    give_gradients(model)
    optimizer_step(model, optimizer, 0.1, CONFIG)
    move(model, optimizer, torch.device("meta"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert len(optimizer.state) == 2
    for state in optimizer.state.values():
        assert {name: value.device.type for name, value in state.items()} == {
            "step": "cpu",
            "exp_avg": "meta",
            "exp_avg_sq": "meta",
        }
