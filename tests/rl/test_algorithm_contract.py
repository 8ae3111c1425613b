"""What every algorithm promises: config, arithmetic of parts, and what a learning step does.

``docs/adding-an-algorithm.md`` explains the promises; its example is tested as one more algorithm.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from d1ray.config.errors import ConfigError
from d1ray.config.kinds import ALGORITHMS, load_algorithm
from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.recipe import load_config
from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators import ESTIMATORS
from d1ray.diffusion.estimators.estimator import Group
from d1ray.rl.algorithm import Algorithm, Terms, Totals
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.learning import learn
from d1ray.rl.optimizer import adamw
from d1ray.rl.rollout import group_logps
from d1ray.rl.update import accumulate_gradient

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-an-algorithm.md"
EOS, MASK, SEED, MU = 0, 1, 5, 2
N, G, L = 3, 4, 6


def documented_algorithm() -> type[Algorithm]:
    """The class that the document's Python block defines."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    defined: dict = {}
    exec(compile(code, DOCUMENT, "exec"), defined)
    return defined["Reinforce"]


@pytest.fixture(params=dict.fromkeys([*ALGORITHMS, "reinforce"]))
def algorithm(request, monkeypatch):
    """Every algorithm with its defaults, and the one in the document."""
    if request.param not in ALGORITHMS:
        monkeypatch.setitem(ALGORITHMS, request.param, documented_algorithm())
    return ALGORITHMS[request.param]()


def test_the_documents_commands_are_right(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "reinforce", documented_algorithm())
    commands = [
        shlex.split(line) for line in DOCUMENT.read_text().splitlines() if line.startswith("d1ray train ")
    ]
    assert len(commands) == 2
    for _, _, recipe, *overrides in commands:
        assert load_config(recipe, overrides).rl.algorithm.name == "reinforce"


def test_the_documents_table_has_every_algorithm_with_its_defaults():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`.*? \| `(\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(
        (name, made.estimator.name, made.advantage)
        for name, made in ((n, c()) for n, c in ALGORITHMS.items())
    )


# Config


def test_it_is_registered_under_its_name_and_describes_its_settings(algorithm):
    assert ALGORITHMS[algorithm.name] is type(algorithm)
    assert type(algorithm).__doc__
    for name, field in type(algorithm).model_fields.items():
        assert field.description or name in ("name", "estimator", "advantage"), f"{name} has no description"


def test_it_can_be_named_in_a_config_and_read_back(algorithm):
    config = RLConfig.model_validate({"algorithm": algorithm.name})
    assert config.algorithm == algorithm
    assert RLConfig.model_validate(config.model_dump(mode="json")).algorithm == algorithm
    assert load_config("sudoku-tiny", [f"rl.algorithm={algorithm.name}"]).rl.algorithm == algorithm
    of_the_recipe = load_config("sudoku-tiny").rl.algorithm
    named = load_config("sudoku-tiny", [f"rl.algorithm.name={algorithm.name}"]).rl.algorithm
    assert named == (of_the_recipe if algorithm.name == of_the_recipe.name else algorithm)


def test_it_works_with_its_estimator_and_no_other_than_it_names(algorithm):
    assert algorithm.estimator.name in algorithm.estimators
    assert set(algorithm.estimators) <= set(ESTIMATORS)
    for name in set(ESTIMATORS) - set(algorithm.estimators):
        with pytest.raises(ConfigError) as error:
            load_config(
                "sudoku-tiny", [f"rl.algorithm.name={algorithm.name}", f"rl.algorithm.estimator={name}"]
            )
        message = str(error.value)
        assert message.startswith(
            f"rl.algorithm.estimator.name: {algorithm.name} does not work with {name!r}; use "
        )
        assert "\n" not in message


def test_it_works_with_every_estimator_that_it_names(algorithm):
    for name in algorithm.estimators:
        other = load_algorithm({"name": algorithm.name, "estimator": name})
        assert other.estimator.name == name
        value, gradient, metrics = evaluated(other, make_terms(other))
        assert np.isfinite([value, *metrics.values()]).all()
        assert gradient.isfinite().all()
        assert gradient.any()


def test_an_option_of_its_estimator_leaves_the_others_as_the_algorithm_has_them(algorithm):
    changed = load_algorithm({"name": algorithm.name, "estimator": {"prompt_mask_prob": 0.625}})
    assert changed.estimator == algorithm.estimator.model_copy(update={"prompt_mask_prob": 0.625})


def test_an_unknown_setting_is_named(algorithm):
    with pytest.raises(ValueError, match=r"^algorithm\.betta: unknown option"):
        load_algorithm({"name": algorithm.name, "betta": 1})


def test_settings_are_read_without_torch():
    program = """
import sys
from importlib import import_module
from pkgutil import iter_modules
from d1ray.config.kinds import ALGORITHMS, load_algorithm

for package in ("d1ray.rl.algorithms", "d1ray.diffusion.estimators"):
    for module in iter_modules(import_module(package).__path__, package + "."):
        import_module(module.name)
        assert "torch" not in sys.modules, module.name
for name in ALGORITHMS:
    load_algorithm({"name": name, "estimator": {"prompt_mask_prob": 0.5}})
    assert "torch" not in sys.modules, name
print(len(ALGORITHMS))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{len(ALGORITHMS)}\n", done.stderr


# The loss as a function of its terms


def make_groups():
    """3 groups of 4 completions: no EOS, one in the middle, one at the end, nothing but EOS."""
    draw = np.random.default_rng(0)
    completions = draw.integers(2, 20, (N, G, L)).astype(np.int32)
    completions[:, 1, 3] = completions[:, 2, -1] = EOS
    completions[:, 3] = EOS
    scored = up_to_first_eos(completions, EOS)
    step_map = draw.permuted(np.tile(np.arange(L, dtype=np.int32) // 2, (N, G, 1)), axis=2)
    step_map[:, 1, 4:] = -1
    prompts = ([4, 11, 5, 2], [7, 3], [9, 9, 8])
    return tuple(
        Group(40 + g, np.array(prompts[g], np.int32), completions[g], step_map[g], scored[g])
        for g in range(N)
    )


def make_terms(algorithm, away=0.3, rewards=None):
    """Terms in fp64: random log-probabilities in the estimator's own views; the other policies' near them.
    The groups are an older policy's where the algorithm can weigh them."""
    groups, draw = make_groups(), torch.Generator().manual_seed(1)
    views = [algorithm.estimator.views(group, MASK, SEED, 0) for group in groups]
    weights = torch.from_numpy(np.stack([[view.weights for view in mine] for mine in views], axis=1)).double()
    scored = torch.from_numpy(np.stack([group.scored for group in groups]))

    def normal():
        return torch.randn(weights.shape, dtype=torch.float64, generator=draw)

    new = -0.5 - normal().abs()
    old, reference = new + away * normal(), new + away * normal()
    if rewards is None:
        rewards = torch.rand((N, G), generator=draw).numpy()
    return Terms(
        new=new.requires_grad_(),
        old=old if algorithm.needs_old else None,
        reference=reference if algorithm.needs_reference else None,
        weights=weights,
        scored=scored,
        advantages=torch.from_numpy(algorithm.advantages(rewards)).double(),
        totals=Totals(N, N * G, int(scored.sum()), int((weights != 0).sum())),
        behaviour=old + away * normal() if algorithm.weighs_importance else None,
        importance_cap=1.2 if algorithm.weighs_importance else None,
    )


def evaluated(algorithm, terms):
    """The loss, its gradient in the log-probabilities, and the metrics."""
    new = terms.new.detach().requires_grad_()
    loss = algorithm.loss(replace(terms, new=new))
    (gradient,) = torch.autograd.grad(loss.total, new)
    return float(loss.total.detach()), gradient, {name: float(value) for name, value in loss.metrics.items()}


def sliced(terms, views, groups):
    def part(values):
        return None if values is None else values[views, groups]

    return replace(
        terms,
        new=terms.new.detach()[views, groups],
        old=part(terms.old),
        reference=part(terms.reference),
        behaviour=part(terms.behaviour),
        weights=terms.weights[views, groups],
        scored=terms.scored[groups],
        advantages=terms.advantages[groups],
    )


def test_the_loss_and_its_gradient_are_finite_and_metrics_are_detached_scalars(algorithm):
    terms = make_terms(algorithm)
    loss = algorithm.loss(terms)
    loss.total.backward()
    assert loss.total.shape == ()
    assert loss.total.isfinite()
    assert terms.new.grad.isfinite().all()
    assert terms.new.grad.any()
    for name, value in loss.metrics.items():
        assert value.shape == (), name
        assert value.isfinite(), name
        assert not value.requires_grad, name


@pytest.mark.parametrize("away", [30.0, 3000.0])
def test_a_policy_far_from_the_others_keeps_the_loss_and_its_gradient_finite(algorithm, away):
    terms = make_terms(algorithm, away)
    tensors = {
        name: v.float() for name, v in vars(terms).items() if torch.is_tensor(v) and v.is_floating_point()
    }
    value, gradient, metrics = evaluated(algorithm, replace(terms, **tensors))
    assert gradient.dtype == torch.float32
    assert np.isfinite([value, *metrics.values()]).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("poison", [-torch.inf, torch.inf, torch.nan])
def test_what_stands_where_nothing_is_scored_is_ignored(algorithm, poison):
    terms = make_terms(algorithm)

    def poisoned(values):
        return None if values is None else torch.where(terms.weights != 0, values.detach(), poison)

    bad = replace(
        terms, **{name: poisoned(getattr(terms, name)) for name in ("new", "old", "reference", "behaviour")}
    )
    value, gradient, metrics = evaluated(algorithm, terms)
    bad_value, bad_gradient, bad_metrics = evaluated(algorithm, bad)
    assert (bad_value, bad_metrics) == (value, metrics)
    assert torch.equal(bad_gradient, gradient)
    assert (gradient[terms.weights == 0] == 0).all()


@pytest.mark.parametrize("which", ["new", "old", "reference", "behaviour"])
def test_a_nan_where_something_is_scored_is_not_hidden(algorithm, which):
    terms = make_terms(algorithm)
    if getattr(terms, which) is not None:
        values = getattr(terms, which).detach().clone()
        values[tuple(terms.weights.nonzero()[0])] = torch.nan
        assert algorithm.loss(replace(terms, **{which: values})).total.isnan()


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7.7])
def test_equal_rewards_give_no_gradient_on_policy(algorithm, reward):
    terms = make_terms(algorithm, away=0.0, rewards=np.full((N, G), reward, np.float32))
    assert (terms.advantages == 0).all()
    assert (evaluated(algorithm, terms)[1] == 0).all()


def test_the_parts_of_micro_batches_add_up(algorithm):
    terms, everything = make_terms(algorithm), slice(None)
    value, gradient, metrics = evaluated(algorithm, terms)
    parts = [evaluated(algorithm, sliced(terms, everything, groups)) for groups in ([0], [1, 2])]
    assert sum(part[0] for part in parts) == pytest.approx(value)
    assert torch.allclose(torch.cat([part[1] for part in parts], dim=1), gradient)
    for name in metrics:
        assert sum(part[2][name] for part in parts) == pytest.approx(metrics[name])


def test_the_parts_of_views_add_up_unless_it_says_that_it_mixes_them(algorithm):
    # Claiming to mix views without need would cost a second forward pass.
    if "samples" in type(algorithm.estimator).model_fields:  # one view would show nothing
        algorithm = load_algorithm({"name": algorithm.name, "estimator": {"samples": 3}})
    terms = make_terms(algorithm)
    value, gradient, metrics = evaluated(algorithm, terms)
    views = range(len(terms.new))
    parts = [evaluated(algorithm, sliced(terms, slice(k, k + 1), slice(None))) for k in views]
    adds_up = torch.allclose(torch.cat([part[1] for part in parts]), gradient)
    assert adds_up == (not algorithm.mixes_views)
    if adds_up:
        assert sum(part[0] for part in parts) == pytest.approx(value)
        for name in metrics:
            assert sum(part[2][name] for part in parts) == pytest.approx(metrics[name])


def test_permuting_the_completions_of_groups_permutes_the_gradient(algorithm):
    terms, order = make_terms(algorithm), torch.tensor([2, 0, 3, 1])

    def permuted(values):
        return None if values is None else values.detach()[:, :, order]

    other = replace(
        terms,
        new=permuted(terms.new),
        old=permuted(terms.old),
        reference=permuted(terms.reference),
        behaviour=permuted(terms.behaviour),
        weights=permuted(terms.weights),
        scored=terms.scored[:, order],
        advantages=terms.advantages[:, order],
    )
    value, gradient, _ = evaluated(algorithm, terms)
    other_value, other_gradient, _ = evaluated(algorithm, other)
    assert other_value == pytest.approx(value)
    assert torch.allclose(other_gradient, gradient[:, :, order])


def test_an_importance_cap_is_refused_unless_the_loss_weighs_its_surrogate(algorithm):
    overrides = [f"rl.algorithm.name={algorithm.name}", "rl.importance_cap=2"]
    if algorithm.weighs_importance:
        assert load_config("sudoku-tiny", overrides).rl.importance_cap == 2
        return
    with pytest.raises(ConfigError) as error:
        load_config("sudoku-tiny", overrides)
    assert str(error.value) == (
        f"rl: importance_cap=2 does not work with algorithm {algorithm.name}; set it to null, or use one of "
        "coupled_grpo, diffu_grpo, espo, gdpo, tracerl, unigrpo"
    )


def test_importance_weights_of_one_change_no_bit_and_those_above_the_cap_are_the_cap(algorithm):
    if not algorithm.weighs_importance:
        return
    algorithm = algorithm.model_copy(update={"beta": 0.0})  # a KL is not weighted
    terms = make_terms(algorithm)
    value, gradient, metrics = evaluated(algorithm, replace(terms, behaviour=None, importance_cap=None))
    same, same_gradient, same_metrics = evaluated(algorithm, replace(terms, behaviour=terms.old))
    weighed = {"importance_mean": pytest.approx(1), "importance_truncated": 0}
    assert (same, same_metrics) == (value, metrics | weighed)
    assert torch.equal(same_gradient, gradient)
    rare = replace(terms, behaviour=terms.old - 50)
    capped, capped_gradient, capped_metrics = evaluated(algorithm, rare)
    assert capped == pytest.approx(1.2 * value)
    assert torch.allclose(capped_gradient, 1.2 * gradient)
    weighed = {"importance_mean": pytest.approx(1.2), "importance_truncated": pytest.approx(1)}
    assert capped_metrics == metrics | weighed


# Learning steps of a model


def settings(algorithm, **changes):
    optimizer = OptimizerConfig(learning_rate=1e-3, max_grad_norm=1.0, weight_decay=0.0)
    return RLConfig(**{"steps": 2, "mu": MU, "optimizer": optimizer, "algorithm": algorithm} | changes)


def make_batch(model, reference, algorithm, groups, rewards):
    """What generators and scorers would deliver; no log-probabilities that the algorithm does not need."""

    def logps(model):  # [n, G, M, K, L]
        rows = []
        for group in groups:
            views = [
                view for inner in range(MU) for view in algorithm.estimator.views(group, MASK, SEED, inner)
            ]
            rows.append(torch.from_numpy(group_logps(model, group, views, 16384)))
        return torch.stack(rows).unflatten(2, (MU, -1))

    return Batch(
        groups,
        logps(model) if algorithm.needs_old else None,
        logps(reference) if algorithm.needs_reference else None,
        torch.from_numpy(algorithm.advantages(np.array(rewards, np.float32))),
    )


REWARDS = [[1, 0, 0, 0.5], [0, 0, 1, 1], [0.2, 0.7, 0, 0]]


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def learned(model, batch, config):
    metrics = learn(model, adamw(model, config.optimizer), batch, 0, SEED, config)
    return metrics, weights_of(model)


def test_a_learning_step_changes_the_weights_and_always_in_the_same_way(algorithm, make_model):
    batch = make_batch(make_model(0), make_model(1), algorithm, make_groups(), REWARDS)
    assert (batch.old is None) == (not algorithm.needs_old)
    before, after = weights_of(make_model(0)), []
    for _ in range(2):
        metrics, weights = learned(make_model(0), batch, settings(algorithm))
        assert (metrics["updates"], metrics["nonfinite"], metrics["empty_batches"]) == (MU, 0, 0)
        assert np.isfinite(list(metrics.values())).all()
        after.append(weights)
    assert after[0].isfinite().all()
    assert not torch.equal(after[0], before)
    assert torch.equal(after[0], after[1])


def test_on_policy_the_learner_sees_the_generators_log_probabilities(algorithm, make_model):
    batch = make_batch(make_model(0), make_model(1), algorithm, make_groups(), REWARDS)
    metrics, _ = learned(make_model(0), batch, settings(algorithm))
    assert metrics.get("logprob_gap", 0.0) < 1e-5
    assert ("logprob_gap" in metrics) == algorithm.needs_old


@pytest.mark.parametrize("tokens", [1, 50])
def test_the_micro_batch_size_does_not_change_the_gradient(algorithm, make_model, tokens):
    batch = make_batch(make_model(0), make_model(1), algorithm, make_groups(), REWARDS)
    gradients = []
    for size in (16384, tokens):
        model = make_model(2)  # not the policy that sampled
        config = settings(algorithm, micro_batch_tokens=size)
        accumulate_gradient(model, batch, 1, SEED, config)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    whole, parts = gradients
    assert (parts - whole).norm() < 1e-5 * whole.norm()


def test_steps_on_a_pair_raise_the_better_completion(algorithm, make_model):
    completions = np.array([[5, 9, 3, 12], [14, 2, 17, 8]], np.int32)
    steps, scored = np.tile(np.arange(4, dtype=np.int32), (2, 1)), np.ones((2, 4), bool)
    pair = (Group(3, np.array([4, 11, 5], np.int32), completions, steps, scored),)
    model = make_model(0)
    batch = make_batch(model, make_model(0), algorithm, pair, [[1, 0]])
    views = algorithm.estimator.views(pair[0], MASK, SEED, 0)
    weights = np.stack([view.weights for view in views], axis=1)  # [G, K, L]

    def scores():
        return (group_logps(model, pair[0], views, 16384) * weights).sum((1, 2))

    history = [scores()]
    for _ in range(3):
        accumulate_gradient(model, batch, 0, SEED, settings(algorithm))
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        with torch.no_grad():
            for p in model.parameters():
                p -= 1e-3 * p.grad / norm
        model.zero_grad()
        history.append(scores())
    for (better, worse), (better_next, worse_next) in pairwise(history):
        assert better_next > better
        assert better_next - worse_next > better - worse


def test_when_all_rewards_are_equal_a_filtered_step_changes_no_bit_and_says_so(algorithm, make_model):
    batch = make_batch(make_model(0), make_model(1), algorithm, make_groups(), [[0.1] * G] * N)
    config = settings(algorithm, skip_zero_advantage=True)
    metrics, after = learned(make_model(0), batch, config)
    assert torch.equal(after, weights_of(make_model(0)))
    assert (metrics["updates"], metrics["empty_batches"], metrics["groups_with_advantage"]) == (0, 1, 0)
