"""Numbers of a run of any length, in bounded memory."""

import math

import pytest

from d1ray.run.history import MOST_BARS, MOST_BINS, PHASES, WALL, History, Series
from d1ray.run.retention import superfluous


def test_few_values_are_kept_as_they_are() -> None:
    series = Series(most=4)
    for step, value in ((0, 1.0), (20, 0.5), (40, 2.0)):
        series.add(step, value)
    assert series.width == 1 and [(b.first, b.last, b.mean) for b in series.bins] == [
        (0, 0, 1.0),
        (20, 20, 0.5),
        (40, 40, 2.0),
    ]
    assert (series.at(20), series.at(21), series.total) == (0.5, None, 3.5)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 100, 1023, 1025])
def test_a_series_has_the_mean_of_all_its_values_and_every_extreme(steps: int) -> None:
    series, values = Series(most=4), [math.sin(step) for step in range(steps)]
    for step, value in enumerate(values):
        series.add(step, value)
    bins = series.bins
    assert len(bins) <= 4 and sum(one.count for one in bins) == steps
    assert sum(one.total for one in bins) == pytest.approx(sum(values)) == series.total
    for one in bins:
        own = values[one.first : one.last + 1]
        assert (one.low, one.high, one.count) == (min(own), max(own), len(own))
        assert one.mean == pytest.approx(sum(own) / len(own))
    assert series.best == (values.index(max(values)), max(values))
    assert [one.first for one in bins] == [n * series.width for n in range(len(bins))]


def test_the_best_is_the_earliest_of_the_highest() -> None:
    series = Series()
    for step, value in ((4, 0.1), (8, 0.7), (12, 0.7), (16, 0.2)):
        series.add(step, value)
    assert series.best == (8, 0.7)


def test_what_is_no_number_is_left_out() -> None:
    rows = [
        {
            "stage": "rl",
            "step": 1,
            "kl": None,
            "loss": math.nan,
            "cell": "high",
            "solved": 0.5,
            "flag": True,
        },
        {"stage": "rl", "reward": 1.0},
        {"step": 1, "reward": 1.0},
        {},
    ]
    history = History(rows)
    assert list(history.series) == [("rl", "solved")] and history.last == {"rl": 1}
    assert not history.of("rl", "kl")


def test_a_phase_that_was_not_measured_in_a_step_took_no_time() -> None:
    rows = [
        {"stage": "rl", "step": 0, "validation_solved": 1.0},
        {"stage": "rl", "step": 1, "seconds_learn": 2.0, "seconds_step": 3.0},
        {"stage": "rl", "step": 2, "seconds_score": 1.0, "seconds_step": 3.0},
    ]
    phases = History(rows).phases
    assert [one.mean for one in phases["learn"].bins] == [2.0, 0.0]
    assert {len(phases[phase].bins) for phase in (*PHASES, WALL)} == {2}
    assert phases[WALL].total == 6.0


def test_a_long_history_is_no_larger_than_a_shorter_one() -> None:
    def size(steps: int) -> tuple[int, int]:
        rows = ({"stage": "rl", "step": s, "kl": 0.1, "seconds_learn": 1.0} for s in range(steps))
        history = History(rows)
        series = [*history.series.values(), *history.phases.values()]
        return max(len(one.bins) for one in series), sum(len(one.bins) for one in series)

    (most, bins), (longest, more) = size(4_000), size(64_000)
    assert most <= longest <= MOST_BINS and more == bins <= 2 * MOST_BINS + 7 * MOST_BARS


# Which rollouts stay.


def kept(steps: int, keep: int, every: int = 1) -> list[int]:
    there: list[int] = []
    for step in range(1, steps + 1):
        there.append(step)
        if step % every == 0:
            gone = set(superfluous(there, step, keep))
            there = [one for one in there if one not in gone]
    return there


@pytest.mark.parametrize("keep", [1, 2, 3, 8, 100])
def test_at_most_so_many_rollouts_stay_the_newest_among_them(keep: int) -> None:
    for steps in (1, keep, keep + 1, 3 * keep, 1000):
        there = kept(steps, keep)
        assert len(there) <= keep and there[-1] == steps
        assert steps > keep or there == list(range(1, steps + 1))


def test_the_others_are_at_equal_distances_over_the_run() -> None:
    there = kept(1000, 16)
    assert there == [128, 256, 384, 512, 640, 768, 896, *range(993, 1001)]


def test_how_often_it_is_asked_does_not_matter() -> None:
    assert kept(960, 20) == kept(960, 20, every=32) == kept(960, 20, every=960)


def test_nothing_newer_than_the_step_goes() -> None:
    assert superfluous(range(1, 50), newest=10, keep=4) == [1, 2, 3, 5, 6, 7]
