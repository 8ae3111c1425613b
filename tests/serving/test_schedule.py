"""Which rows are denoised when: by a token budget, in turns of a block."""

import pytest

from d1ray.config.sampling import SamplerConfig
from d1ray.serving.row import Commit, Row
from d1ray.serving.schedule import Schedule
from d1ray.serving.weights import Weights

EOS = 0


@pytest.fixture
def make_row(make_model):
    weights = Weights(make_model(mlp_hidden_size=64, max_sequence_length=2048), "v1")

    def make(blocks: int, prompt: int = 4) -> Row:
        """A completion of so many blocks of 4, one token a step."""
        config = SamplerConfig(gen_length=4 * blocks, steps=4 * blocks, block_length=4)
        return Row(weights, [5] * prompt, config, (0, 0), 4 * blocks, {EOS})

    return make


def go_on(row: Row) -> None:
    """A step that commits the next token."""
    row.commit(Commit([row.settled], [7], [1.0]))


def run(schedule: Schedule, until: Row, steps: int = 10_000) -> int:
    """Steps until a row is finished."""
    for step in range(steps):
        for row in list(schedule.turn()):
            go_on(row)
        if until.finish is not None:
            return step + 1
    raise AssertionError("the row never finished")


def test_rows_within_the_budget_are_denoised_together_and_the_rest_wait_in_order(make_row):
    schedule = Schedule(batch_tokens=192, rows=10)
    rows = [make_row(2) for _ in range(5)]
    assert [row.columns for row in rows] == [64] * 5
    for row in rows:
        schedule.add(row)
    assert schedule.turn() == rows[:3]
    assert len(schedule) == 5 and not schedule.full


def test_a_row_may_join_at_any_step(make_row):
    schedule = Schedule(batch_tokens=192, rows=10)
    first, second = make_row(2), make_row(2)
    schedule.add(first)
    for row in list(schedule.turn()):
        go_on(row)
    schedule.add(second)
    assert set(schedule.turn()) == {first, second}


def test_a_row_that_is_wider_than_the_budget_goes_alone(make_row):
    schedule = Schedule(batch_tokens=64, rows=10)
    wide, narrow = make_row(2, prompt=100), make_row(2)
    schedule.add(wide)
    schedule.add(narrow)
    assert schedule.turn() == [wide]
    assert run(schedule, narrow) <= 16


def test_a_short_row_waits_for_one_block_of_the_long_ones_at_most(make_row):
    schedule = Schedule(batch_tokens=2 * make_row(32).columns, rows=10)
    long = [make_row(32), make_row(32)]
    for row in long:
        schedule.add(row)
    for _ in range(5):
        for row in list(schedule.turn()):
            go_on(row)
    short = make_row(1)
    schedule.add(short)
    assert run(schedule, short) <= 3 + 4  # what is left of the block, and its own
    assert all(row.finish is None for row in long)


def test_long_rows_are_not_overtaken_for_ever_by_short_ones(make_row):
    schedule = Schedule(batch_tokens=64, rows=1000)
    long = make_row(8, prompt=2)
    schedule.add(long)
    steps = 0
    while long.finish is None:
        while len(schedule) < 8:
            schedule.add(make_row(1))
        for row in list(schedule.turn()):
            go_on(row)
        steps += 1
        assert steps < 8 * 4 * 8  # its share of the turns


def test_everybody_who_waits_gets_through(make_row):
    schedule = Schedule(batch_tokens=256, rows=100)
    rows = [make_row(1 + place % 7, prompt=1 + 5 * place) for place in range(30)]
    for row in rows:
        schedule.add(row)
    for row in rows:
        if row.finish is None:
            run(schedule, row)
    assert schedule.turn() == [] and len(schedule) == 0


def test_rows_may_be_given_up_wherever_they_are(make_row):
    schedule = Schedule(batch_tokens=64, rows=2)
    active, waiting = make_row(2), make_row(2)
    schedule.add(active)
    schedule.add(waiting)
    assert schedule.full
    schedule.turn()
    schedule.remove(waiting)
    schedule.remove(active)
    schedule.remove(active)
    assert len(schedule) == 0 and schedule.turn() == []
