"""The trajectory estimator against the sampler it replays, and against sums over all completions."""

import itertools

import numpy as np
import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.estimators import load_estimator
from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.estimators.trajectory import segment_starts
from d1ray.diffusion.likelihood import join_views, token_logps
from d1ray.diffusion.sampler import sample

EOS, MASK, VOCAB = 0, 1, 20
PROMPT = (4, 11, 5)


def trajectory(segments, **options):
    return load_estimator({"name": "trajectory", "segments": segments, **options})


def group_of(completions, step_map, scored=None, eos=EOS):
    completions, step_map = np.array(completions, np.int32), np.array(step_map, np.int32)
    is_eos = completions == eos
    scored = is_eos.cumsum(1) - is_eos == 0 if scored is None else scored
    return Group(3, np.array(PROMPT, np.int32), completions, step_map, scored)


def views_of(group, segments, inner=0, **options):
    return trajectory(segments, **options).views(group, MASK, 0, inner)


def inputs_of(view):
    return view.inputs[view.row_of]


def replay(model, group, views):
    """Each token's weighted log-probability, summed over views: ``[G, L]``."""
    total = torch.zeros(group.completions.shape)
    with torch.no_grad():
        for view in views:
            joined = join_views([view], [group.completions], EOS, torch.device("cpu"))
            total += torch.from_numpy(view.weights) * token_logps(model, joined)
    return total


def random_group(size=30, length=16):
    """Completions of any length, committed up to three a step; blocks after the EOS's are not committed."""
    draw = np.random.default_rng(0)
    completions, steps = draw.integers(2, 20, (size, length)), np.empty((size, length))
    for row in range(size):
        if row:  # the first has no EOS
            completions[row, draw.integers(length)] = EOS
        order = np.concatenate([start + draw.permutation(4) for start in range(0, length, 4)])
        steps[row, order] = np.cumsum(draw.integers(0, 2, length))
        ends = np.flatnonzero(completions[row] == EOS)
        if len(ends):
            steps[row, 4 * (ends[0] // 4 + 1) :] = -1
    return group_of(completions, steps)


# What the sampler saw


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 12},
        {"steps": 6},
        {"steps": 6, "temperature": 0.7},
        {"steps": 12, "decoding": "threshold", "threshold": 0.5},
    ],
)
def test_an_exact_replay_has_the_samplers_log_probabilities(make_model, options):
    model = make_model(eos_token_id=9)  # a token that this model is fond of
    config = SamplerConfig(gen_length=12, block_length=4, **{"temperature": 1.0, **options})
    samples = sample(model, [PROMPT] * 12, config, list(range(12)))
    group = group_of(samples.ids.numpy(), samples.step_map.numpy(), eos=9)
    assert (group.step_map < 0).any()  # blocks that were never denoised
    assert ((group.step_map >= 0) & ~group.scored).any()  # and tokens after the EOS in the block that was
    replayed = replay(model, group, views_of(group, 12)).numpy()
    assert replayed == pytest.approx(np.where(group.scored, samples.logps.numpy(), 0), abs=1e-4)


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [(0, 0), (0, 1), (1, 0), (5, 2)])
def test_the_probabilities_of_all_completions_sum_to_one(model, steps, segments):
    # Given its order, a trajectory is a chain of conditional probabilities, merged or not. No token is
    # special here: every completion of two tokens is scored in full.
    everything = np.array(list(itertools.product(range(VOCAB), repeat=2)))
    group = group_of(everything, [steps] * len(everything), np.ones(everything.shape, bool))
    total = replay(model, group, views_of(group, segments))
    assert total.sum(1).double().exp().sum() == pytest.approx(1, abs=1e-5)


def test_the_orders_of_a_completion_differ_in_probability(model):
    # Six orders of three tokens, each exactly replayed, against one forward per token by hand.
    completion, found, expected = (7, 3, 9), [], []
    for order in itertools.permutations(range(3)):
        steps = [order.index(k) for k in range(3)]
        group = group_of([completion], [steps])
        chain, tokens = 0.0, [*PROMPT, MASK, MASK, MASK]
        with torch.no_grad():
            for k in order:
                chain += model(torch.tensor([tokens]))[0, 3 + k].log_softmax(-1)[completion[k]].item()
                tokens[3 + k] = completion[k]
        found.append(float(replay(model, group, views_of(group, 3)).sum()))
        expected.append(chain)
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.1


# Views


def test_views_worked_out_by_hand():
    # Steps of valid tokens: 0 1 3 4; the EOS is the fifth token. Two segments: steps 0 1 and 3 4.
    completion, steps = [7, 3, 9, 8, EOS, 12, 13, EOS], [1, 0, 3, 4, 3, 2, 5, -1]
    first, second = views_of(group_of([completion], [steps]), 2)
    assert first.inputs.tolist() == [[MASK] * 8]
    assert first.weights.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    # Before step 3: 7 3 and the token of step 2, though it is after the EOS; neither step 5 nor step -1.
    assert second.inputs.tolist() == [[7, 3, MASK, MASK, MASK, 12, MASK, MASK]]
    assert second.weights.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 8, 16, 20])
def test_every_token_up_to_the_first_eos_is_scored_exactly_once(segments):
    group = random_group()
    views = views_of(group, segments)
    assert (np.sum([view.weights for view in views], axis=0) == group.scored).all()


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 8, 16, 20])
def test_a_view_shows_what_was_committed_before_the_tokens_it_scores_and_no_later_token(segments):
    group = random_group()
    for view in views_of(group, segments):
        for row, weights in enumerate(view.weights):
            hidden, steps = inputs_of(view)[row] == MASK, group.step_map[row]
            if weights.any():
                first = steps[weights != 0].min()
                assert (hidden == ((steps >= first) | (steps < 0))).all()
            else:
                assert hidden.all()


@pytest.mark.parametrize("segments", [2, 3, 5])
def test_segments_are_as_even_as_possible_and_in_order(segments):
    group = random_group()
    views = views_of(group, segments)
    for row in range(len(group.completions)):
        parts = [set(group.step_map[row][view.weights[row] != 0].tolist()) for view in views]
        sizes, distinct = [len(part) for part in parts], len(set.union(*parts))
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == distinct  # no step in two segments
        ordered = [step for part in parts for step in sorted(part)]
        assert ordered == sorted(ordered)


def test_more_segments_than_steps_add_views_that_score_nothing():
    group = random_group(length=8)
    exact, more = views_of(group, 8), views_of(group, 11)
    for view, same in zip(exact, more, strict=False):
        assert (inputs_of(view) == inputs_of(same)).all()
        assert (view.weights == same.weights).all()
    assert not any(view.weights.any() for view in more[8:])


@pytest.mark.parametrize("inner", [0, 1])
def test_one_segment_is_the_one_step_view(inner):
    group = group_of([[7, 3, EOS, 9], [5, 8, 9, 2]], [[1, 0, 2, 0], [3, 0, 1, 2]])
    (view,) = views_of(group, 1, inner, prompt_mask_prob=0.5)
    one_step = load_estimator({"name": "one_step", "prompt_mask_prob": 0.5})
    (expected,) = one_step.views(group, MASK, 0, inner)
    assert view.inputs.tolist() == expected.inputs.tolist()  # one row for the whole group
    assert [p.tolist() for p in view.prompts] == [p.tolist() for p in expected.prompts]
    assert (view.weights == expected.weights).all()


def test_what_was_committed_after_the_eos_before_everything_else_is_shown():
    (view,) = views_of(group_of([[7, EOS, 9, 8]], [[1, 2, 0, 1]]), 1)
    assert view.inputs.tolist() == [[MASK, MASK, 9, MASK]]


def test_a_group_shares_the_row_of_its_first_view_and_equal_histories_share_theirs():
    # Two equal completions of the same order, and one that differs in its last token.
    group = group_of([[7, 3, 9], [7, 3, 9], [7, 3, 8]], [[0, 1, 2]] * 3)
    assert [len(view.inputs) for view in views_of(group, 3)] == [1, 1, 1]
    group = group_of([[7, 3, 9], [7, 3, 9], [6, 3, 9]], [[0, 1, 2]] * 3)
    assert [len(view.inputs) for view in views_of(group, 3)] == [1, 2, 2]


def test_a_token_that_no_step_committed_counts_as_committed_last():
    first, second = views_of(group_of([[7, 3, 9]], [[0, -1, -1]]), 2)
    assert (first.weights.tolist(), second.weights.tolist()) == ([[1, 0, 0]], [[0, 1, 1]])
    assert second.inputs.tolist() == [[7, MASK, MASK]]
    (unknown,) = views_of(group_of([[7, 3, 9]], [[-1, -1, -1]]), 1)
    assert unknown.weights.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("steps", "segments", "starts"),
    [
        ([3], 1, [3]),
        ([3], 4, [3]),
        ([0, 1, 2, 3], 2, [0, 2]),
        ([0, 1, 4, 5, 9], 2, [0, 5]),
        ([0, 1, 4, 5, 9], 3, [0, 4, 9]),
        ([0, 1, 4, 5, 9], 5, [0, 1, 4, 5, 9]),
        (list(range(10)), 4, [0, 3, 6, 8]),
    ],
)
def test_steps_are_split_evenly_with_the_longer_segments_first(steps, segments, starts):
    assert segment_starts(np.array(steps, np.int32), segments).tolist() == starts
