"""The views that hide random subsets, one promise at a time; what they estimate is tested elsewhere."""

from dataclasses import replace

import numpy as np
import pytest

from d1ray.diffusion.estimators import load_estimator
from d1ray.diffusion.estimators.estimator import Group

EOS, MASK = 0, 1


def make_group(lengths, width, group_id=3):
    """Completions with an EOS as their last of ``lengths`` tokens (none if that is the width)."""
    completions = np.random.default_rng(0).integers(2, 20, (len(lengths), width)).astype(np.int32)
    for row, n in enumerate(lengths):
        if n < width:
            completions[row, n - 1] = EOS
    scored = np.arange(width) < np.array(lengths)[:, None]
    return Group(group_id, np.arange(2, 9, dtype=np.int32), completions, np.zeros_like(completions), scored)


def inputs_of(view):
    return view.inputs[view.row_of]


# Coupled


def test_each_token_is_scored_once_fully_masked_and_once_in_a_half():
    group = make_group([12, 5, 1], 12)
    for inner in range(20):
        full, half, rest = load_estimator("coupled").views(group, MASK, 0, inner)
        assert (full.weights == 0.5 * group.scored).all()
        assert (inputs_of(full) == MASK).all()
        assert ((half.weights != 0) ^ (rest.weights != 0) == group.scored).all()
        assert ((inputs_of(half) == MASK) ^ (inputs_of(rest) == MASK))[group.scored].all()


def test_coupled_weights_are_one_over_twice_the_share_and_its_complement():
    group = make_group([40, 30], 40)
    for inner in range(20):
        _, half, rest = load_estimator("coupled").views(group, MASK, 0, inner)
        for row in range(2):
            (one,), (other,) = (np.unique(v.weights[row][v.weights[row] != 0]) for v in (half, rest))
            t = 1 / (2 * one)
            assert 0.2 <= t <= 0.8
            assert 1 / (2 * other) == pytest.approx(1 - t, rel=1e-5)


def test_a_group_shares_the_row_in_which_everything_is_hidden():
    views = load_estimator("coupled").views(make_group([12, 12, 12], 12), MASK, 0, 0)
    assert [len(view.inputs) for view in views] == [1, 3, 3]


# Random ratio


def test_a_mask_is_never_empty():
    estimator = load_estimator({"name": "random_ratio", "low": 0, "high": 0, "samples": 2})
    group = make_group([5] * 2000, 8)
    for view in estimator.views(group, MASK, 0, 0):
        hidden = inputs_of(view)[:, :5] == MASK
        assert (hidden.sum(axis=1) == 1).all()
        assert (view.weights[:, :5] == hidden).all()
        # 5 tokens, 400 each: chi-square of 4 degrees of freedom is below 18.5 with p = .999.
        assert ((hidden.sum(axis=0) - 400) ** 2 / 400).sum() < 18.5


def test_ratios_are_spread_over_views_and_inner_updates():
    # Long completions show their ratio: the share of hidden tokens is within .03 of it (4.5 deviations).
    estimator, group = load_estimator({"name": "random_ratio", "samples": 4}), make_group([6000] * 3, 6000)
    shares = np.array(
        [[v.weights.mean(axis=1) for v in estimator.views(group, MASK, 0, m)] for m in range(3)]
    )  # [3, 4, G]
    assert shares.min() > 0.1 - 0.03
    assert shares.max() < 0.9 + 0.03
    gaps = np.diff(np.sort(shares, axis=1), axis=1)  # between the 4 views of one inner update: .8 / 4
    assert np.abs(gaps - 0.2).max() < 0.06
    across = np.sort(shares.reshape(12, 3), axis=0)  # 12 ratios: evenly, they would lie .067 apart
    assert np.diff(across, axis=0).max() < 0.14
    assert np.ptp(shares[0, 0]) > 0.06  # and completions differ


# ELBO


@pytest.mark.parametrize("samples", [1, 3])
def test_coupled_elbo_views_are_complements_weighted_by_their_sizes(samples):
    group = make_group([8, 3, 1], 8)
    estimator = load_estimator({"name": "elbo", "rule": "coupled", "samples": samples})
    sizes = set()
    for inner in range(30):
        views = estimator.views(group, MASK, 0, inner)
        for one, other in zip(views[::2], views[1::2], strict=True):
            assert ((one.weights != 0) ^ (other.weights != 0) == group.scored).all()
            for view in (one, other):
                for row, n in enumerate([8, 3, 1]):
                    size = int((inputs_of(view)[row, :n] == MASK).sum())
                    assert view.weights[row].sum() == pytest.approx((n + 1) / (2 * samples) * (size > 0))
                    sizes.add((n, size))
    assert sizes == {(n, size) for n in (8, 3, 1) for size in range(n + 1)}


def test_the_three_point_rule_hides_and_weighs_as_its_nodes_say():
    # Nodes (1 - sqrt(.6)) / 2, 1/2, (1 + sqrt(.6)) / 2 with weights 5/18, 8/18, 5/18.
    group = make_group([400], 400)
    views = load_estimator({"name": "elbo", "rule": "gauss_legendre", "samples": 3}).views(group, MASK, 0, 0)
    nodes, weights = [0.1127017, 0.5, 0.8872983], [0.2777778, 0.4444444, 0.2777778]
    for view, t, w in zip(views, nodes, weights, strict=True):
        weighed = view.weights[view.weights != 0]
        assert weighed == pytest.approx(400 * w / len(weighed), rel=1e-5)
        assert len(weighed) == pytest.approx(400 * t, abs=1 + 4.5 * (400 * t * (1 - t)) ** 0.5)


# Blocks


def test_block_views_hide_later_blocks_and_score_all_they_hide():
    group = make_group([10, 7, 2], 12)
    estimator = load_estimator({"name": "block_bounds", "block_length": 4, "prompt_mask_prob": 0})
    seen = set()
    for inner in range(100):
        views = estimator.views(group, MASK, 0, inner)
        for row, n in enumerate([10, 7, 2]):
            blocks = []
            for view in views:
                hidden = inputs_of(view)[row] == MASK
                assert hidden[n:].all()
                assert ((view.weights[row] != 0) == (hidden & group.scored[row])).all()
                block = int(np.flatnonzero(hidden)[0]) // 4  # the first with a hidden token
                assert hidden[4 * (block + 1) :].all()
                blocks.append(block)
                seen.add((n, block, int(hidden[4 * block : min(4 * block + 4, n)].sum())))
            if n > 4:  # at least two blocks: two views take different ones
                assert len(set(blocks)) == 2
    # Every block, with every number of its valid tokens hidden.
    expected = (
        {(10, 0, c) for c in range(1, 5)} | {(10, 1, c) for c in range(1, 5)} | {(10, 2, 1), (10, 2, 2)}
    )
    expected |= {(7, 0, c) for c in range(1, 5)} | {(7, 1, c) for c in range(1, 4)} | {(2, 0, 1), (2, 0, 2)}
    assert seen == expected


def test_block_weights_are_one_over_views_and_scored_tokens():
    group = make_group([10, 7, 2], 12)
    for inner in range(20):
        views = load_estimator({"name": "block_bounds", "samples": 3, "block_length": 4}).views(
            group, MASK, 0, inner
        )
        for view in views:
            assert view.weights.sum(axis=1) == pytest.approx(1 / 3)  # of a mean over the view's tokens
            assert all(len(np.unique(row[row != 0])) == 1 for row in view.weights)


def test_earlier_blocks_and_the_prompt_are_hidden_at_the_same_rate():
    group = make_group([64] * 500, 64)
    estimator = load_estimator({"name": "block_bounds", "samples": 1, "block_length": 32})
    (view,) = estimator.views(group, MASK, 0, 0)
    prompts = np.array([view.prompts[row] == MASK for row in view.row_of])
    assert prompts.mean() == pytest.approx(0.15, abs=4.5 * (0.15 * 0.85 / prompts.size) ** 0.5)
    # A view of the first block hides all of the second: a row that shows some of it is a view of the second.
    hidden = inputs_of(view) == MASK
    earlier = hidden[~hidden[:, 32:].all(axis=1), :32]
    assert 190 < len(earlier) < 294  # half of 500, less one in 32 that hides all: 242, deviation 11
    assert earlier.mean() == pytest.approx(0.15, abs=4.5 * (0.15 * 0.85 / earlier.size) ** 0.5)
    # ... independently: two neighbours are both hidden at .15 squared.
    both = (earlier[:, ::2] & earlier[:, 1::2]).mean()
    assert both == pytest.approx(0.0225, abs=4.5 * (0.0225 / (earlier.size / 2)) ** 0.5)


def test_each_block_view_of_each_completion_has_its_own_prompt_mask():
    # Completions of one token: their inputs are equal, fully masked, and only the prompts tell rows apart.
    group = make_group([1, 1, 1], 4)
    estimator = load_estimator({"name": "block_bounds", "samples": 2, "prompt_mask_prob": 0.5})
    group = replace(group, prompt=np.arange(2, 42, dtype=np.int32))
    views = estimator.views(group, MASK, 0, 0)
    assert len({view.prompts[row].tobytes() for view in views for row in view.row_of}) == 6
