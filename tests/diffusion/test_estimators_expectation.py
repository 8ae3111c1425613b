"""What the estimators estimate, against brute force: every mask of a small completion is run through a tiny
random LLaDA, and the estimators' expectations are sums over all masks.

They are compared twice: exactly, by running an estimator on every outcome of its random draws, and
statistically, on the draws themselves.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from d1ray.config import rng
from d1ray.diffusion.estimators import load_estimator
from d1ray.diffusion.estimators.elbo import spread_counts
from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.estimators.subsets import random_subsets, subsets_of_size
from d1ray.diffusion.likelihood import join_views, token_logps

EOS, MASK, VOCAB = 0, 1, 20
PROMPT = (4, 11)
COMPLETIONS = {1: (EOS, 7, 12), 2: (7, EOS, 9), 3: (7, 3, EOS, 12), 4: (7, 3, 9, EOS, 12)}  # by valid tokens
LARGE_Z = 4.5  # standard errors; exceeded by chance once in 150,000


def make_group(n, size=1, group_id=3):
    completions = np.array([COMPLETIONS[n]] * size, np.int32)
    scored = np.arange(completions.shape[1]) < n
    return Group(
        group_id,
        np.array(PROMPT, np.int32),
        completions,
        np.zeros_like(completions),
        np.broadcast_to(scored, completions.shape),
    )


def subsets_of(tokens):
    """All subsets, as tuples in order."""
    tokens = tuple(tokens)
    return [s for size in range(len(tokens) + 1) for s in itertools.combinations(tokens, size)]


def hide(ids, positions):
    return tuple(MASK if k in positions else token for k, token in enumerate(ids))


class Table:
    """Log-probabilities of a completion's n valid tokens under every mask of them and of the prompt.

    What follows the first EOS is always hidden: looking up an input in which it is not fails.
    """

    def __init__(self, model, n):
        self.n, completion = n, COMPLETIONS[n]
        tail = range(n, len(completion))
        inputs = [
            hide(PROMPT, prompt) + hide(completion, (*tokens, *tail))
            for prompt in subsets_of(range(len(PROMPT)))
            for tokens in subsets_of(range(n))
        ]
        with torch.no_grad():
            logps = model(torch.tensor(inputs))[:, len(PROMPT) :].double().log_softmax(-1)
        tokens = torch.tensor([completion]).expand(len(inputs), -1)
        values = logps.gather(2, tokens[..., None])[..., 0].numpy()
        self.logps = dict(zip(inputs, values, strict=True))  # each [L]

    def at(self, hidden, hidden_prompt=()):
        """``[n]`` given which valid tokens and which prompt tokens are hidden."""
        tail = range(self.n, len(COMPLETIONS[self.n]))
        return self.logps[hide(PROMPT, hidden_prompt) + hide(COMPLETIONS[self.n], (*hidden, *tail))][: self.n]

    def scored(self, hidden, hidden_prompt=()):
        """The same, 0 at visible tokens."""
        return np.isin(range(self.n), hidden) * self.at(hidden, hidden_prompt)

    def orders(self):
        """The chain-rule log-likelihood of each order in which the valid tokens can be revealed."""
        return [
            sum(self.at(order[done:])[order[done]] for done in range(self.n))
            for order in itertools.permutations(range(self.n))
        ]

    def elbo(self):
        return np.mean(self.orders())

    def estimate(self, views):
        """What views of a group estimate, ``[G, n]``: the weighted sum of each token's log-probabilities."""
        total = 0.0
        for view in views:
            inputs = [(*p.tolist(), *row.tolist()) for p, row in zip(view.prompts, view.inputs, strict=True)]
            rows = np.array([self.logps[row] for row in inputs])
            total = total + view.weights * rows[view.row_of]
        assert not total[:, self.n :].any()
        return total[:, : self.n]


@pytest.fixture
def make_table(model):
    return lambda n: Table(model, n)


class Draws:
    """Stands in for a numpy Generator: takes the given choices, then the first of each further draw.

    A continuous uniform is replaced by Gauss-Legendre nodes on each half of its interval: exact for the
    polynomials of degree up to 7 at hand, whose only jump is at one half.
    """

    def __init__(self, choices):
        self.choices, self.widths, self.taken, self.probability = choices, [], [], 1.0

    def choose(self, options, probabilities):
        possible = [(o, p) for o, p in zip(options, probabilities, strict=True) if p > 0]
        index = self.choices[len(self.taken)] if len(self.taken) < len(self.choices) else 0
        self.taken.append(index)
        self.widths.append(len(possible))
        self.probability *= possible[index][1]
        return possible[index][0]

    def evenly(self, options):
        return self.choose(options, [1 / len(options)] * len(options))

    def integers(self, low, high=None, size=None, endpoint=False):
        low, high = (0, low) if high is None else (low, high + endpoint)
        if size is None:
            return self.evenly(range(low, high))
        return np.array([self.evenly(range(low, high)) for _ in range(size)])

    def binomial(self, n, chances):
        sizes = range(n + 1)
        return np.array(
            [
                self.choose(sizes, [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in sizes])
                for p in chances
            ]
        )

    def permutation(self, n):
        return np.array(self.evenly(list(itertools.permutations(range(n)))))

    def permuted(self, rows, axis):
        assert axis == 1
        return np.array([row[self.permutation(len(row))] for row in rows])

    def uniform(self, low, high):
        nodes, weights = np.polynomial.legendre.leggauss(4)
        halves = np.concatenate([(1 + nodes) / 4, (3 + nodes) / 4])
        return low + (high - low) * self.choose(halves, np.tile(weights / 4, 2))

    def random(self, shape=None, dtype=None):
        return self.uniform(0, 1) if shape is None else Uniforms(self, shape)


class Uniforms:
    """An array of uniforms that is only compared with probabilities."""

    def __init__(self, draws, shape):
        self.draws, self.shape = draws, shape

    def __lt__(self, levels):
        chances = np.broadcast_to(levels, self.shape)
        outcomes = [self.draws.choose([True, False], [p, 1 - p]) for p in chances.ravel().tolist()]
        return np.array(outcomes).reshape(self.shape)


def expectation(monkeypatch, table, estimator):
    """The estimate's exact expectation ``[n]``: the estimator runs once for every outcome of its draws."""
    group, total, mass, pending = make_group(table.n), np.zeros(table.n), 0.0, [[]]
    while pending:
        choices = pending.pop()
        draws = Draws(choices)
        monkeypatch.setattr(rng, "generator", lambda *key, draws=draws: draws)
        estimate = table.estimate(estimator.views(group, MASK, 0, 0))[0]
        total, mass = total + draws.probability * estimate, mass + draws.probability
        for depth in range(len(choices), len(draws.taken)):
            pending += [[*draws.taken[:depth], other] for other in range(1, draws.widths[depth])]
    monkeypatch.undo()
    assert mass == pytest.approx(1)
    return total


def assert_mean(values, expected):
    """A z-test for each of the columns of ``values [draws, columns]``."""
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    assert (np.abs(values.mean(axis=0) - expected) < LARGE_Z * error + 1e-6).all()


# The sequence ELBO


def elbo(rule, samples):
    return load_estimator({"name": "elbo", "rule": rule, "samples": samples})


@pytest.mark.parametrize(
    ("rule", "samples", "n"),
    [
        ("monte_carlo", 1, 4),
        ("monte_carlo", 2, 3),
        ("stratified", 1, 4),
        ("stratified", 2, 3),
        ("stratified", 3, 2),
        ("stratified", 3, 1),
        ("coupled", 1, 4),
        ("coupled", 2, 3),
        ("coupled", 3, 2),
        ("coupled", 2, 1),
        ("gauss_legendre", 1, 1),
        ("gauss_legendre", 1, 2),
        ("gauss_legendre", 2, 3),
        ("gauss_legendre", 2, 4),
    ],
)
def test_the_elbo_is_the_mean_over_all_orders(monkeypatch, make_table, rule, samples, n):
    table = make_table(n)
    assert expectation(monkeypatch, table, elbo(rule, samples)).sum() == pytest.approx(table.elbo(), rel=1e-6)


@pytest.mark.parametrize(("samples", "n"), [(1, 3), (1, 4)])
def test_quadrature_is_not_exact_beyond_twice_its_nodes(monkeypatch, make_table, samples, n):
    table = make_table(n)
    estimate = expectation(monkeypatch, table, elbo("gauss_legendre", samples)).sum()
    assert estimate != pytest.approx(table.elbo(), rel=1e-4)
    # ... but it is the rule applied to the integrand: at its one node, t = 1/2, every mask has chance 2^-n.
    at_half = sum(table.scored(hidden).sum() for hidden in subsets_of(range(n))) / 2**n
    assert estimate == pytest.approx(at_half / 0.5, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("rule", ["monte_carlo", "stratified", "coupled", "gauss_legendre"])
def test_drawn_elbos_average_to_the_mean_over_all_orders(make_table, rule, samples):
    table = make_table(2 if rule == "gauss_legendre" else 4)
    views = elbo(rule, samples).views(make_group(table.n, size=2000), MASK, 7, 0)
    assert_mean(table.estimate(views).sum(axis=1, keepdims=True), table.elbo())


@pytest.mark.parametrize("n", [1, 2, 5, 7])
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 16])
def test_spread_counts_are_each_uniform(samples, n):
    # Over the n equally likely starts, each sample has every number once; and one draw's numbers are spread.
    drawn = np.array([spread_counts(StartsAt(start), samples, n) for start in range(n)])
    assert (np.sort(drawn, axis=0) == np.arange(n)[:, None]).all()
    assert all(np.ptp(np.bincount(row, minlength=n)) <= 1 for row in drawn)


class StartsAt:
    def __init__(self, start):
        self.start = start

    def integers(self, n):
        return self.start


def test_the_expected_elbo_never_exceeds_the_log_probability(monkeypatch, make_table):
    table = make_table(3)
    orders = table.orders()
    estimate = expectation(monkeypatch, table, elbo("coupled", 1)).sum()
    assert estimate < np.log(np.mean(np.exp(orders)))  # equal only if all orders agree, and these do not
    assert np.ptp(orders) > 0.1


@pytest.mark.parametrize("rule", ["monte_carlo", "stratified", "gauss_legendre"])
def test_a_model_that_knows_nothing_has_its_elbo_in_every_draw(rule):
    # All tokens at -log V whatever is hidden: c tokens at n / c each make n, so the estimate has no noise.
    views = elbo(rule, 3).views(make_group(4, size=50), MASK, 0, 0)
    assert np.sum([v.weights for v in views], axis=(0, 2)) == pytest.approx(4)


# Per-token estimators


def integral(low, high, hidden, visible):
    """The mean over t in [low, high] of t^hidden (1 - t)^visible."""
    antiderivative = (Polynomial([0, 1]) ** hidden * Polynomial([1, -1]) ** visible).integ()
    return (antiderivative(high) - antiderivative(low)) / (high - low)


def expected_random_ratio(table, low, high):
    n, total = table.n, np.zeros(table.n)
    for hidden in subsets_of(range(n))[1:]:
        chance = integral(low, high, len(hidden), n - len(hidden))
        if len(hidden) == 1:
            chance += integral(low, high, 0, n) / n  # in the place of a mask that hides nothing
        total += chance * table.scored(hidden)
    return total


def expected_coupled(table, low, high):
    everything = tuple(range(table.n))
    total = table.scored(everything) / 2
    for hidden in subsets_of(everything):
        shown = tuple(k for k in everything if k not in hidden)
        if hidden:  # P(hidden | t) / t
            total = total + integral(low, high, len(hidden) - 1, len(shown)) * table.scored(hidden) / 2
        if shown:  # P(hidden | t) / (1 - t)
            total = total + integral(low, high, len(hidden), len(shown) - 1) * table.scored(shown) / 2
    return total


def expected_block_bounds(table, block_length, p):
    """SPG's view distribution, written out: block, count, subset, earlier tokens, prompt."""
    n, total = table.n, np.zeros(table.n)
    blocks = [range(start, min(start + block_length, n)) for start in range(0, n, block_length)]
    for block in blocks:
        later = tuple(range(block.stop, n))
        for count in range(1, len(block) + 1):
            inside = list(itertools.combinations(block, count))
            for subset, earlier, prompt in itertools.product(
                inside, subsets_of(range(block.start)), subsets_of(range(len(PROMPT)))
            ):
                chance = p ** (len(earlier) + len(prompt))
                chance *= (1 - p) ** (block.start + len(PROMPT) - len(earlier) - len(prompt))
                chance /= len(blocks) * len(block) * len(inside)
                hidden = earlier + subset + later
                total += chance * table.scored(hidden, prompt) / len(hidden)
    return total


PER_TOKEN = [
    ({"name": "random_ratio"}, lambda table: expected_random_ratio(table, 0.1, 0.9)),
    ({"name": "random_ratio", "low": 0, "high": 1}, lambda table: expected_random_ratio(table, 0, 1)),
    ({"name": "coupled"}, lambda table: expected_coupled(table, 0.2, 0.8)),
    ({"name": "coupled", "low": 0.5, "high": 0.7}, lambda table: expected_coupled(table, 0.5, 0.7)),
    (
        {"name": "block_bounds", "samples": 1, "block_length": 2, "prompt_mask_prob": 0.3},
        lambda table: expected_block_bounds(table, 2, 0.3),
    ),
    (
        {"name": "block_bounds", "samples": 2, "block_length": 2, "prompt_mask_prob": 0},
        lambda table: expected_block_bounds(table, 2, 0),
    ),
    (
        {"name": "block_bounds", "samples": 3, "block_length": 2, "prompt_mask_prob": 0},
        lambda table: expected_block_bounds(table, 2, 0),
    ),
]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("options", "expected"), PER_TOKEN)
def test_each_token_has_its_expected_value(monkeypatch, make_table, options, expected, n):
    table = make_table(n)
    estimate = expectation(monkeypatch, table, load_estimator(options))
    assert estimate == pytest.approx(expected(table), rel=1e-6)


@pytest.mark.parametrize(("options", "expected"), PER_TOKEN)
def test_drawn_values_average_to_each_tokens_expected_value(make_table, options, expected):
    table = make_table(4)
    views = load_estimator(options).views(make_group(4, size=2000), MASK, 7, 0)
    assert_mean(table.estimate(views), expected(table))


def test_several_random_ratios_sum_to_as_many_times_one(monkeypatch, make_table):
    table = make_table(2)
    one = expectation(monkeypatch, table, load_estimator("random_ratio"))
    two = expectation(monkeypatch, table, load_estimator({"name": "random_ratio", "samples": 2}))
    assert two == pytest.approx(2 * one, rel=1e-6)


def test_the_complement_of_a_coupled_mask_is_weighted_by_what_it_hides(make_table):
    # Uncoupled means of the two halves: each is an unbiased share on its own, so t and 1 - t are not swapped.
    table, everything = make_table(3), (0, 1, 2)
    estimator = load_estimator({"name": "coupled", "low": 0.7, "high": 0.7})
    views = estimator.views(make_group(3, size=2000), MASK, 7, 0)
    expected = {1: np.zeros(3), 2: np.zeros(3)}
    for hidden in subsets_of(everything):
        shown = tuple(k for k in everything if k not in hidden)
        chance = 0.7 ** len(hidden) * 0.3 ** len(shown)
        expected[1] += chance * table.scored(hidden) / (2 * 0.7)
        expected[2] += chance * table.scored(shown) / (2 * 0.3)
    for view in (1, 2):
        assert_mean(table.estimate([views[view]]), expected[view])


# The scorer and the draws


@pytest.mark.parametrize("options", [o for o, _ in PER_TOKEN] + [{"name": "elbo", "rule": "coupled"}])
def test_scored_views_give_what_the_table_does(make_table, model, options):
    table, group = make_table(4), make_group(4, size=5)
    views = load_estimator(options).views(group, MASK, 1, 2)
    ours = np.zeros(group.completions.shape)
    with torch.no_grad():
        for view in views:
            joined = join_views([view], [group.completions], EOS, torch.device("cpu"))
            ours += view.weights * token_logps(model, joined).numpy()
    assert ours[:, :4] == pytest.approx(table.estimate(views), rel=1e-4)


def test_all_subsets_of_a_size_are_equally_likely():
    counts = np.tile([0, 2, 4], 2000)
    subsets = subsets_of_size(np.random.default_rng(0), counts, 4)
    assert (subsets.sum(axis=1) == counts).all()
    seen = np.bincount(subsets[counts == 2] @ [1, 2, 4, 8], minlength=16)
    pairs = seen[[3, 5, 6, 9, 10, 12]]
    # 6 pairs: chi-square of 5 degrees of freedom is below 20.5 with p = .999.
    assert pairs.sum() == 2000
    assert ((pairs - 2000 / 6) ** 2 / (2000 / 6)).sum() < 20.5


def test_each_token_is_hidden_with_its_masks_probability_and_independently():
    levels = np.repeat([0.0, 0.3, 1.0], 2000)
    subsets = random_subsets(np.random.default_rng(0), levels, 3)
    assert not subsets[:2000].any()
    assert subsets[4000:].all()
    seen = np.bincount(subsets[2000:4000] @ [1, 2, 4], minlength=8)
    sizes = [bin(code).count("1") for code in range(8)]
    expected = np.array([2000 * float(Fraction(3, 10) ** s * Fraction(7, 10) ** (3 - s)) for s in sizes])
    # 8 outcomes: chi-square of 7 degrees of freedom is below 24.3 with p = .999.
    assert ((seen - expected) ** 2 / expected).sum() < 24.3
