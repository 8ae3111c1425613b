"""The masked-diffusion loss on a row of three tokens whose probabilities are chosen."""

import math

import pytest
import torch
from torch import nn

from d1ray.diffusion.masked_loss import MaskedDiffusionLoss

EOS, MASK = 0, 1


class Chosen(nn.Module):
    """Logits ``log p [L, V]`` at the completion's three positions, whatever the input."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def hidden(self, input_ids, attention_mask=None, position_ids=None, *, at):
        before = torch.full(
            (input_ids.shape[1] - len(self.logits), self.logits.shape[1]), torch.nan
        )  # not scored
        return torch.cat([before, self.logits])[at]

    @property
    def head_weight(self):
        return torch.eye(self.logits.shape[1])


#            eos   mask  2     3
PROBABLE = [[0.125, 0.25, 0.5, 0.125], [0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]


def loss_of(model, completions, masked, levels):
    rows = len(completions)
    ids = torch.cat([torch.full((rows, 2), 3), torch.tensor(completions)], dim=1)
    every = torch.tensor(levels)[:, None].expand(rows, 3)
    return MaskedDiffusionLoss(model)(ids, None, None, torch.tensor(completions), torch.tensor(masked), every)


def test_the_loss_is_cross_entropy_at_masked_tokens_over_t():
    # Tokens 2, 3, EOS; masked are 2 (p = 1/2) and the EOS (p = 1/4); t' = 1/2.
    # (ln 2 + ln 4) / (1/2) = 6 ln 2
    loss = loss_of(Chosen(PROBABLE), [[2, 3, EOS]], [[True, False, True]], [0.5])
    assert float(loss.detach()) == pytest.approx(6 * math.log(2), rel=1e-6)


def test_each_row_is_weighted_by_its_own_level():
    # Row 0: ln 2 / (1/2) = 2 ln 2. Row 1: (ln 8 + ln 4) / (1/4) = 20 ln 2.
    loss = loss_of(
        Chosen(PROBABLE), [[2, 3, 3], [3, 2, 3]], [[True, False, False], [True, True, False]], [0.5, 0.25]
    )
    assert float(loss.detach()) == pytest.approx(22 * math.log(2), rel=1e-6)


def test_padding_eos_counts_like_any_token():
    # Two EOS after the token: 2 x ln 4 at t' = 1.
    loss = loss_of(Chosen(PROBABLE), [[2, EOS, EOS]], [[False, True, True]], [1.0])
    assert float(loss.detach()) == pytest.approx(4 * math.log(2), rel=1e-6)


def test_tokens_that_are_not_masked_give_no_gradient():
    # d CE / d logits = (p - onehot) / t': at position 0 (.125, .25, .5 - 1, .125) x 2; elsewhere 0.
    model = Chosen(PROBABLE)
    loss_of(model, [[2, 3, EOS]], [[True, False, False]], [0.5]).backward()
    expected = torch.tensor([[0.25, 0.5, -1.0, 0.25], [0.0] * 4, [0.0] * 4])
    assert torch.allclose(model.logits.grad, expected, atol=1e-6)


def test_a_row_without_masked_tokens_costs_nothing():
    loss = loss_of(Chosen(PROBABLE), [[2, 3, EOS]], [[False, False, False]], [0.001])
    loss.backward()
    assert float(loss.detach()) == 0


def test_a_real_models_loss_is_that_of_its_logits(model):
    ids = torch.tensor([[4, 5, MASK, 7, MASK]])
    completions, masked = torch.tensor([[6, 7, EOS]]), torch.tensor([[True, False, True]])
    with torch.no_grad():
        loss = MaskedDiffusionLoss(model)(ids, None, None, completions, masked, torch.full((1, 3), 0.25))
        logps = model(ids)[0].log_softmax(-1)
    assert float(loss.detach()) == pytest.approx(-4 * float(logps[2, 6] + logps[4, EOS]), rel=1e-5)
