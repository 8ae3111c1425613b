"""What every registered estimator promises, whatever it estimates. A new one is a line in ``OPTIONS``."""

from dataclasses import replace

import numpy as np
import pytest

from d1ray.diffusion.estimators import ESTIMATORS, load_estimator
from d1ray.diffusion.estimators.estimator import Group

EOS, MASK, SEED, LENGTH, GROUP = 0, 1, 5, 12, 4
OPTIONS = [
    {"name": "one_step"},
    {"name": "one_step", "mask_scope": "completion"},
    {"name": "random_ratio"},
    {"name": "random_ratio", "samples": 3, "low": 0, "high": 1},
    {"name": "random_ratio", "low": 0.5, "high": 0.5},
    {"name": "coupled"},
    {"name": "elbo"},
    {"name": "elbo", "rule": "monte_carlo", "samples": 3},
    {"name": "elbo", "rule": "coupled", "samples": 3},
    {"name": "elbo", "rule": "gauss_legendre", "samples": 3},
    {"name": "block_bounds", "block_length": 4},
    {"name": "block_bounds", "block_length": 5, "samples": 5},
    {"name": "trajectory"},
    {"name": "trajectory", "segments": 3},
]
DRAWS_NOTHING = ("one_step", "trajectory")  # but their prompt masks
SHOWS_WHAT_FOLLOWS_EOS = ("trajectory",)  # it replays what the sampler saw


@pytest.fixture(params=OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def estimator(request):
    return load_estimator(request.param)


def make_group(group_id=7, prompt=(4, 11, 5, 2, 9, 8, 13, 6)):
    """Four completions: no EOS, one in the middle, EOS first, and EOS everywhere; committed in any order."""
    draw = np.random.default_rng(0)
    completions = draw.integers(2, 20, (GROUP, LENGTH)).astype(np.int32)
    completions[1, 6] = completions[2, 0] = completions[3] = EOS
    step_map = np.stack([draw.permutation(LENGTH) // 2 for _ in range(GROUP)]).astype(np.int32)
    step_map[1, 8:] = step_map[2, 4:] = -1
    is_eos = completions == EOS
    scored = is_eos.cumsum(1) - is_eos == 0
    return Group(group_id, np.array(prompt, np.int32), completions, step_map, scored)


def rows_of(view):
    """Each completion's prompt and input in a view."""
    return [(view.prompts[row].tolist(), view.inputs[row].tolist()) for row in view.row_of]


def as_lists(views):
    return [(rows_of(view), view.weights.tolist()) for view in views]


def test_every_registered_estimator_is_under_contract():
    assert {options["name"] for options in OPTIONS} == set(ESTIMATORS)
    assert all(estimator.model_fields["name"].default == name for name, estimator in ESTIMATORS.items())


def test_views_have_their_number_shapes_and_types(estimator):
    group = make_group()
    views = estimator.views(group, MASK, SEED, 0)
    assert len(views) == estimator.views_per_update
    for view in views:
        rows = len(view.inputs)
        assert 1 <= rows <= GROUP
        assert len(view.prompts) == rows
        assert (view.inputs.shape, view.inputs.dtype) == ((rows, LENGTH), np.int32)
        assert all(p.shape == group.prompt.shape and p.dtype == np.int32 for p in view.prompts)
        assert (view.weights.shape, view.weights.dtype) == ((GROUP, LENGTH), np.float32)
        assert (view.row_of.shape, view.row_of.dtype) == ((GROUP,), np.int64)


def test_every_row_is_used_and_none_is_there_twice(estimator):
    for view in estimator.views(make_group(), MASK, SEED, 0):
        assert set(view.row_of.tolist()) == set(range(len(view.inputs)))
        rows = rows_of(view)
        assert len({str(row) for row in rows}) == len(view.inputs)


@pytest.mark.parametrize("inner", range(20))
def test_only_hidden_tokens_up_to_the_first_eos_weigh_something(estimator, inner):
    group = make_group()
    for view in estimator.views(group, MASK, SEED, inner):
        weighed = view.weights != 0
        assert np.isfinite(view.weights).all()
        assert (view.weights >= 0).all()
        assert not weighed[~group.scored].any()
        assert (view.inputs[view.row_of][weighed] == MASK).all()


@pytest.mark.parametrize("inner", range(5))
def test_what_is_visible_is_the_completion(estimator, inner):
    group = make_group()
    for view in estimator.views(group, MASK, SEED, inner):
        inputs = view.inputs[view.row_of]
        visible = inputs != MASK
        assert (inputs[visible] == group.completions[visible]).all()
        if estimator.name in SHOWS_WHAT_FOLLOWS_EOS:
            assert not visible[group.step_map < 0].any()
        else:
            assert not visible[~group.scored].any()


def test_every_token_up_to_the_first_eos_is_scored_sooner_or_later(estimator):
    group = make_group()
    views = [view for inner in range(60) for view in estimator.views(group, MASK, SEED, inner)]
    assert (np.any([view.weights != 0 for view in views], axis=0) == group.scored).all()


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_prompt_tokens_are_hidden_with_the_given_probability(estimator, probability):
    prompt = np.arange(2, 42, dtype=np.int32)
    group = replace(make_group(), prompt=prompt)
    masked = estimator.model_copy(update={"prompt_mask_prob": probability})
    counts = []
    for inner in range(50):
        for view in masked.views(group, MASK, SEED, inner)[:1]:
            hidden = view.prompts[0] == MASK
            assert (view.prompts[0][~hidden] == prompt[~hidden]).all()
            counts.append(hidden.sum())
    # 50 masks of 40 tokens: deviation sqrt(2,000 p (1 - p)).
    error = (2000 * probability * (1 - probability)) ** 0.5
    assert abs(sum(counts) - 2000 * probability) <= 4.5 * error


def test_equal_keys_give_equal_views(estimator):
    masked = estimator.model_copy(update={"prompt_mask_prob": 0.5})
    first = as_lists(masked.views(make_group(), MASK, SEED, 3))
    masked.views(make_group(8), MASK, SEED + 1, 0)  # what is drawn in between does not matter
    assert as_lists(masked.views(make_group(), MASK, SEED, 3)) == first


@pytest.mark.parametrize("key", [(7, SEED, 4), (7, SEED + 1, 3), (8, SEED, 3)])
def test_another_group_seed_or_inner_update_gives_other_views(estimator, key):
    group_id, seed, inner = key
    drawn = estimator.model_copy(update={"prompt_mask_prob": 0.5 * (estimator.name in DRAWS_NOTHING)})
    first = as_lists(drawn.views(make_group(), MASK, SEED, 3))
    assert as_lists(drawn.views(make_group(group_id), MASK, seed, inner)) != first


def test_a_completions_views_do_not_depend_on_the_others(estimator):
    masked, whole = estimator.model_copy(update={"prompt_mask_prob": 0.5}), make_group()
    views = masked.views(whole, MASK, SEED, 0)
    parts = {name: getattr(whole, name)[:2] for name in ("completions", "step_map", "scored")}
    other = {**parts, "completions": np.stack([parts["completions"][0], whole.completions[3]])}
    for changed, same in ((parts, 2), (other, 1)):
        for view, part in zip(views, masked.views(replace(whole, **changed), MASK, SEED, 0), strict=True):
            assert rows_of(part)[:same] == rows_of(view)[:same]
            assert (part.weights[:same] == view.weights[:same]).all()


def test_the_smallest_group_is_scored(estimator):
    # G = 1, L = 1: an EOS and nothing else.
    one, zero = np.array([[True]]), np.zeros((1, 1), np.int32)
    group = Group(7, np.array([4], np.int32), zero + EOS, zero, one)
    views = [view for inner in range(20) for view in estimator.views(group, MASK, SEED, inner)]
    scoring = [view for view in views if view.weights.any()]
    assert len(scoring) >= 5
    assert all(view.inputs.tolist() == [[MASK]] for view in scoring)


def test_settings_survive_a_round_trip(estimator):
    assert load_estimator(estimator.model_dump(mode="json")) == estimator


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "random_ratio", "low": 0.5, "high": 0.4}, "estimator.high: must not be below low, 0.5"),
        ({"name": "random_ratio", "low": 0.95}, "estimator.high: must not be below low, 0.95, found 0.9"),
        ({"name": "random_ratio", "high": 1.1}, "estimator.high: "),
        ({"name": "random_ratio", "samples": 0}, "estimator.samples: "),
        ({"name": "coupled", "low": 0}, "estimator.low: "),  # 1 / t
        ({"name": "coupled", "high": 1}, "estimator.high: "),  # 1 / (1 - t)
        ({"name": "coupled", "low": 0.9}, "estimator.high: must not be below low"),
        ({"name": "elbo", "rule": "simpson"}, "estimator.rule: "),
        ({"name": "elbo", "samples": 0}, "estimator.samples: "),
        ({"name": "block_bounds", "block_length": 0}, "estimator.block_length: "),
        ({"name": "block_bounds", "prompt_mask_prob": 1.5}, "estimator.prompt_mask_prob: "),
        ({"name": "trajectory", "segments": 0}, "estimator.segments: "),
        (
            {"name": "trajectory", "segmnets": 4},
            "estimator.segmnets: unknown option (did you mean 'segments'?)",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError) as error:
        load_estimator(options)
    assert str(error.value).startswith(message)
