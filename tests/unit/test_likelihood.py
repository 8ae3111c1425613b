"""One-step log-probabilities against brute force: one completion, one forward, one softmax at a time."""

import numpy as np
import pytest
import torch

from d1ray.diffusion import one_step_view, token_logps
from d1ray.rl.update import group_logps

MASK = 1
PROMPTS = (np.array([4, 11, 5], np.int32), np.array([7, 9, 2, 13, 3], np.int32))
MASKS = ([False, True, False], [True, False, False, False, True])
COMPLETIONS = torch.tensor(  # [2 groups, G = 3, L = 4]
    [[[5, 6, 0, 0], [19, 2, 3, 4], [5, 5, 5, 5]], [[8, 0, 3, 0], [2, 14, 9, 17], [0, 0, 0, 0]]]
)


def brute_force(model, prompt, mask, completion):
    """``[L]`` log pi(o_k | q'): full mask after the prompt with its masked tokens replaced."""
    length = len(completion)
    ids = [MASK if hidden else int(token) for token, hidden in zip(prompt, mask, strict=True)]
    logits = model(torch.tensor([ids + [MASK] * length]))[0, -length:]
    return torch.stack([logits[k, completion[k]] - torch.logsumexp(logits[k], dim=0) for k in range(length)])


def parameters_gradient(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_ragged_prompts_give_the_brute_force_log_probabilities(model):
    view = one_step_view(model, PROMPTS, [np.array(m) for m in MASKS], 4)
    completions = COMPLETIONS[:, 1]
    with torch.no_grad():
        logps = token_logps(model, view, completions, torch.tensor([0, 1]))
        for row in range(2):
            expected = brute_force(model, PROMPTS[row], MASKS[row], completions[row])
            assert torch.allclose(logps[row], expected, atol=1e-5)


def test_row_of_chooses_the_view_row(model):
    view = one_step_view(model, PROMPTS, [np.array(m) for m in MASKS], 4)
    with torch.no_grad():
        logps = token_logps(model, view, COMPLETIONS[0], torch.tensor([1, 0, 1]))
        for index, row in enumerate([1, 0, 1]):
            expected = brute_force(model, PROMPTS[row], MASKS[row], COMPLETIONS[0, index])
            assert torch.allclose(logps[index], expected, atol=1e-5)


def test_the_view_masks_the_prompt_where_told_and_all_of_the_completion(model):
    view = one_step_view(model, PROMPTS, [np.array(m) for m in MASKS], 2)
    assert view.input_ids.tolist() == [
        [0, 0, 4, MASK, 5, MASK, MASK],
        [MASK, 9, 2, 13, MASK, MASK, MASK],
    ]
    assert view.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]


def test_the_prompt_given_is_not_overwritten(model):
    prompt = PROMPTS[0].copy()
    one_step_view(model, (prompt,), [np.array(MASKS[0])], 2)
    assert prompt.tolist() == [4, 11, 5]


@pytest.mark.parametrize("scope", ["group", "completion"])
def test_groups_equal_separate_forwards_in_value_and_gradient(model, scope):
    one = [[np.array(MASKS[0])], [np.array(MASKS[1])]]
    many = [[np.roll(MASKS[g], i) for i in range(3)] for g in range(2)]
    masks = one if scope == "group" else many
    weights = torch.linspace(-1, 1, COMPLETIONS.numel()).reshape(COMPLETIONS.shape)
    logps = group_logps(model, PROMPTS, masks, COMPLETIONS)
    expected = torch.stack(
        [
            torch.stack(
                [
                    brute_force(model, PROMPTS[g], masks[g][i % len(masks[g])], COMPLETIONS[g, i])
                    for i in range(3)
                ]
            )
            for g in range(2)
        ]
    )
    assert torch.allclose(logps, expected, atol=1e-6, rtol=1e-6)
    gradient = parameters_gradient(model, (logps * weights).sum())
    assert torch.allclose(
        gradient, parameters_gradient(model, (expected * weights).sum()), atol=2e-5, rtol=1e-4
    )


def test_log_probabilities_do_not_depend_on_the_completion_they_are_read_for(model):
    # Fully masked inputs: swapping one token changes that token's log-probability only.
    view = one_step_view(model, PROMPTS[:1], [np.array(MASKS[0])], 4)
    pair = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 8]])
    with torch.no_grad():
        first, second = token_logps(model, view, pair, torch.tensor([0, 0]))
    assert (first == second).tolist() == [True, True, False, True]


def test_probabilities_over_the_vocabulary_sum_to_one(model):
    view = one_step_view(model, PROMPTS[:1], [np.array(MASKS[0])], 1)
    with torch.no_grad():
        logps = token_logps(model, view, torch.arange(20)[:, None], torch.zeros(20, dtype=torch.long))
    assert float(logps.exp().sum()) == pytest.approx(1, abs=1e-5)
