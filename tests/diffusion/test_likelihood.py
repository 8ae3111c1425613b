"""Log-probabilities of views against brute force: one completion, one forward, one softmax at a time."""

import numpy as np
import pytest
import torch

from d1ray.diffusion import head
from d1ray.diffusion.estimators.estimator import GroupView
from d1ray.diffusion.head import head_logps
from d1ray.diffusion.likelihood import join_views, one_step_logps, split_rows, token_logps

MASK, PAD = 1, 0
PROMPTS = (np.array([4, 11, 5], np.int32), np.array([7, 9, 2, 13, 3], np.int32))
MASKED_PROMPTS = (np.array([4, MASK, 5], np.int32), np.array([MASK, 9, 2, 13, MASK], np.int32))
COMPLETIONS = np.array(  # [2 groups, G = 3, L = 4]
    [[[5, 6, 0, 0], [19, 2, 3, 4], [5, 5, 5, 5]], [[8, 0, 3, 0], [2, 14, 9, 17], [0, 0, 0, 0]]], np.int32
)


def brute_force(model, prompt, inputs, completion):
    """``[L]`` log-probabilities of a completion when the model sees ``inputs`` in its place."""
    logits = model(torch.tensor([[*prompt.tolist(), *inputs.tolist()]]))[0, len(prompt) :]
    return torch.stack([logits[k, t] - torch.logsumexp(logits[k], dim=0) for k, t in enumerate(completion)])


def parameters_gradient(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def shared_view(prompt, scored=None):
    """Everything hidden, one row for the group's three completions."""
    weights = np.ones((3, 4), np.float32) if scored is None else scored
    return GroupView([prompt], np.full((1, 4), MASK, np.int32), np.zeros(3, np.int64), weights)


def own_view(prompt, completions, seed):
    """Each completion in its own row, about half of it hidden; hidden tokens are scored."""
    hidden = np.random.default_rng(seed).random(completions.shape) < 0.5
    hidden[:, 0] = True
    inputs = np.where(hidden, MASK, completions).astype(np.int32)
    return GroupView([prompt] * 3, inputs, np.arange(3), hidden.astype(np.float32))


def joined(views):
    return join_views(views, list(COMPLETIONS), PAD, torch.device("cpu"))


def expected(model, views):
    """``[N, L]``: brute force where a view scores, 0 elsewhere."""
    rows = []
    for view, completions in zip(views, COMPLETIONS, strict=True):
        for i, completion in enumerate(completions):
            row = view.row_of[i]
            logps = brute_force(model, view.prompts[row], view.inputs[row], completion)
            rows.append(torch.where(torch.from_numpy(view.weights[i] != 0), logps, 0.0))
    return torch.stack(rows)


VIEWS = {
    "shared": [shared_view(prompt) for prompt in MASKED_PROMPTS],
    "own": [own_view(PROMPTS[g], COMPLETIONS[g], g) for g in range(2)],
    "partly scored": [
        shared_view(MASKED_PROMPTS[0], np.array([[1, 1, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0]], np.float32)),
        shared_view(MASKED_PROMPTS[1]),
    ],
    "mixed": [shared_view(MASKED_PROMPTS[0]), own_view(PROMPTS[1], COMPLETIONS[1], 3)],
}


@pytest.fixture(params=["llada", "dream"])
def model(request, make_model, make_dream):
    return make_model() if request.param == "llada" else make_dream()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_log_probabilities_and_gradients_are_those_of_separate_forwards(model, monkeypatch, name, chunk):
    monkeypatch.setattr(head, "LOGITS_BYTES", 4 * model.config.vocab_size * chunk)
    views = VIEWS[name]
    upstream = torch.linspace(-1, 1, COMPLETIONS.size).reshape(6, 4)
    theirs = expected(model, views)
    ours = token_logps(model, joined(views))
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=1e-6)
    gradient = parameters_gradient(model, (ours * upstream).sum())
    reference = parameters_gradient(model, (theirs * upstream).sum())
    assert (gradient - reference).norm() < 1e-5 * reference.norm()


def test_one_row_shared_by_the_group_is_exactly_g_separate_forwards(model):
    """d1's masks drawn once per group: same values and same gradient, for a third of the rows."""
    view = VIEWS["shared"][0]
    completions = torch.from_numpy(COMPLETIONS[0]).long()
    masked = torch.tensor([[*view.prompts[0].tolist(), *[MASK] * 4]])
    separate = one_step_logps(model, masked.expand(3, -1), completions)
    shared = token_logps(model, join_views([view], [COMPLETIONS[0]], PAD, torch.device("cpu")))
    assert torch.allclose(shared, separate, atol=1e-6, rtol=1e-6)
    upstream = torch.linspace(-1, 1, 12).reshape(3, 4)
    ours = parameters_gradient(model, (shared * upstream).sum())
    theirs = parameters_gradient(model, (separate * upstream).sum())
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_joined_views_are_left_padded_and_masked_out(model):
    view = joined(VIEWS["shared"])
    assert view.input_ids.tolist() == [
        [PAD, PAD, 4, MASK, 5, *[MASK] * 4],
        [MASK, 9, 2, 13, MASK, *[MASK] * 4],
    ]
    assert view.attention_mask.tolist() == [[0, 0, *[1] * 7], [1] * 9]
    assert view.row_of.tolist() == [0, 0, 0, 1, 1, 1]


def test_one_step_log_probabilities_of_given_masked_ids(model):
    masked = torch.tensor([[4, MASK, 5, MASK, MASK], [PAD, 9, 2, MASK, MASK]])
    attention = torch.tensor([[1] * 5, [0, 1, 1, 1, 1]])
    completions = torch.tensor([[6, 0], [3, 3]])
    logps = one_step_logps(model, masked, completions, attention)
    first = brute_force(model, np.array([4, MASK, 5]), np.array([MASK, MASK]), [6, 0])
    second = brute_force(model, np.array([9, 2]), np.array([MASK, MASK]), [3, 3])
    assert torch.allclose(logps, torch.stack([first, second]), atol=1e-5)


def test_probabilities_over_the_vocabulary_sum_to_one(model):
    masked = torch.tensor([[4, 11, 5, MASK]]).expand(20, -1)
    with torch.no_grad():
        logps = one_step_logps(model, masked, torch.arange(20)[:, None])
    assert float(logps.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_without_anything_to_score_there_is_nothing_but_zeros(model):
    view = shared_view(MASKED_PROMPTS[0], np.zeros((3, 4), np.float32))
    logps = token_logps(model, join_views([view], [COMPLETIONS[0]], PAD, torch.device("cpu")))
    assert logps.shape == (3, 4)
    assert not logps.any()


def test_positions_are_scored_in_the_order_of_their_tokens(model, monkeypatch):
    monkeypatch.setattr(head, "LOGITS_BYTES", 4 * model.config.vocab_size * 2)
    hidden = torch.randn(5, model.config.width, generator=torch.Generator().manual_seed(0))
    index, tokens = torch.tensor([4, 0, 2, 0, 3, 1]), torch.tensor([3, 7, 7, 8, 9, 2])
    with torch.no_grad():
        logps = head_logps(hidden, model.head_weight, index, tokens)
        expected_logps = model.head(hidden).log_softmax(-1)[index, tokens]
    assert torch.allclose(logps, expected_logps, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_split_rows_covers_every_scored_completion_once(model, rows):
    view = joined(VIEWS["mixed"])
    whole = token_logps(model, view)
    seen = torch.zeros(6, dtype=torch.long)
    for mine, part in split_rows(view, rows):
        assert len(part.input_ids) <= rows
        seen[mine] += 1
        assert torch.allclose(token_logps(model, part), whole[mine], atol=1e-6)
    assert seen.tolist() == [1] * 6


def test_split_rows_leaves_out_rows_that_score_nothing(model):
    nothing = shared_view(MASKED_PROMPTS[0], np.zeros((3, 4), np.float32))
    parts = list(split_rows(joined([nothing, VIEWS["shared"][1]]), 10))
    assert [mine.tolist() for mine, _ in parts] == [[3, 4, 5]]
    assert len(parts[0][1].input_ids) == 1


def test_completions_that_do_not_fit_the_masked_ids_are_refused(model):
    masked = torch.full((2, 5), MASK)
    for completions in (torch.ones(1, 3, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)):
        with pytest.raises(ValueError, match="masked_ids must be"):
            one_step_logps(model, masked, completions)
    for token in (-1, 20):
        with pytest.raises(ValueError, match="outside the model's 20"):
            one_step_logps(model, masked, torch.full((2, 2), token))
