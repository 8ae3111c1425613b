"""Demonstrations that share a row, or stand beside longer ones, are trained on as if each were alone."""

import numpy as np
import pytest
import torch

from d1ray.diffusion.masked_loss import Demonstration, MaskedDiffusionLoss, noised_inputs

SIZES = [(3, 5), (1, 9), (4, 2), (2, 7), (5, 1)]  # tokens of prompt and completion


@pytest.fixture
def demonstrations():
    draw = np.random.default_rng(1)
    return [Demonstration(*(draw.integers(2, 20, n).tolist() for n in sizes)) for sizes in SIZES]


@pytest.fixture(params=["make_model", "make_dream"])
def any_model(request):
    return request.getfixturevalue(request.param)()


def loss_and_gradient(model, demonstrations, rows):
    model.zero_grad()
    inputs = noised_inputs(model, rows, demonstrations, 0.3, 0, 4)
    loss = MaskedDiffusionLoss(model)(*inputs)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters()}


def alone(model, demonstrations):
    parts = [loss_and_gradient(model, demonstrations, [[i]]) for i in range(len(demonstrations))]
    return sum(loss for loss, _ in parts), {name: sum(g[name] for _, g in parts) for name in parts[0][1]}


@pytest.mark.parametrize(
    "rows",
    [
        [[0], [1], [2], [3], [4]],  # beside each other, padded
        [[1, 0], [3, 4, 2]],  # packed and padded
        [[0, 1, 2, 3, 4]],
    ],
)
def test_the_loss_and_its_gradient_are_those_of_each_alone(any_model, demonstrations, rows):
    expected, gradients = alone(any_model, demonstrations)
    assert expected > 10
    loss, found = loss_and_gradient(any_model, demonstrations, rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_goes_with_packing(any_model, demonstrations):
    expected, _ = loss_and_gradient(any_model, demonstrations, [[1, 0], [3, 4, 2]])
    any_model.gradient_checkpointing = True
    assert loss_and_gradient(any_model, demonstrations, [[1, 0], [3, 4, 2]])[0] == expected


def test_a_neighbour_in_the_row_is_not_seen(any_model, demonstrations):
    """Without the attention mask it would be."""
    with torch.no_grad():
        inputs = list(noised_inputs(any_model, [[0, 1, 2]], demonstrations, 0.3, 0, 4))
        loss = MaskedDiffusionLoss(any_model)
        exact = float(loss(*inputs))
        inputs[1] = None
        assert abs(float(loss(*inputs)) - exact) > 0.01


def test_an_attention_mask_for_each_column_needs_positions_and_no_cache(model):
    ids, mask = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs position_ids"):
        model.hidden(ids, mask)
