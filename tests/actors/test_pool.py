"""Pools of simulated actors: which of them get work, which start again, and which are put away."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from ray import exceptions
from simulated_ray import Actor, Ref, SimulatedRay, Task, task_error

from actors import pool as pool_module
from actors import watch as watch_module
from actors.failures import RolloutError
from actors.health import STRIKES
from actors.pool import Pool

Make = Callable[..., Pool]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimulatedRay:
    simulated = SimulatedRay(Random(0), longest_s=1000.0)
    for module in (pool_module, watch_module):
        monkeypatch.setattr(module, "ray", simulated)
        monkeypatch.setattr(module, "time", simulated)
    return simulated


@pytest.fixture
def make(ray: SimulatedRay) -> Iterator[Make]:
    """``make(size, starting)``: a pool; ``starting(actor)`` is their constructor, ``.said`` are its notes."""

    def working(actor: Actor, task: Task) -> tuple[float, Any, None]:
        return 1.0, (None, {}), None

    def made(size: int, starting: Callable[[Actor], None] = lambda actor: None, floor: int = 1) -> Pool:
        said: list[str] = []
        pool = Pool(
            lambda place: Actor(ray, "generator", place, starting, working),
            size,
            title="generator",
            floor=floor,
            note=said.append,
        )
        pool.said = said  # type: ignore[attr-defined]
        return pool

    yield made


def after(pool: Pool, ray: SimulatedRay, seconds: float) -> None:
    end = ray.monotonic() + seconds
    while ray.monotonic() < end:
        pool.watch.turn(0.2)
        pool.tend()


def test_work_goes_to_the_least_busy_that_is_up(make: Make, ray: SimulatedRay) -> None:
    pool = make(3)
    assert pool.free(1) is None
    after(pool, ray, 10)
    assert pool.up == [True] * 3
    given = []
    for _ in range(3):
        index = pool.free(1)
        assert index is not None
        pool.call(index, "generate")
        given.append(index)
    assert sorted(given) == [0, 1, 2] and pool.free(1) is None and pool.busy
    assert pool.free(2, avoiding={0, 1}) == 2
    assert pool.free(2, avoiding={0, 1, 2}) == 0  # there is no other
    after(pool, ray, 5)
    assert pool.idle() == [0, 1, 2]


def test_a_constructor_that_fails_is_tried_again_later_and_later(make: Make, ray: SimulatedRay) -> None:
    tries: list[float] = []

    def late_mount(actor: Actor) -> None:
        if actor.place == 1:
            tries.append(ray.monotonic())
            if ray.monotonic() < 30:
                raise OSError("no such mount")

    pool = make(2, late_mount)
    after(pool, ray, 20)
    assert pool.up == [True, False]  # and the run goes on with the first one
    assert pool.said == ["generator 1 could not start, and is started again: OSError: no such mount"]  # type: ignore[attr-defined]
    after(pool, ray, 100)
    assert pool.up == [True, True]
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert 4 <= len(tries) <= 8 and waits[-1] > 2 * waits[0]


def test_constructors_that_all_fail_end_the_run_with_what_they_say(make: Make, ray: SimulatedRay) -> None:
    def broken(actor: Actor) -> None:
        raise OSError("no such mount")

    pool = make(2, broken)
    with pytest.raises(RolloutError, match="generator 0 cannot start: OSError: no such mount"):
        after(pool, ray, 100)


def test_an_actor_that_fails_in_a_row_is_put_away_but_not_below_the_floor(
    make: Make, ray: SimulatedRay
) -> None:
    pool = make(3, floor=2)
    after(pool, ray, 10)
    for index in (0, 1):
        for strike in range(STRIKES):
            pool.strike(index, "CUDA error")
            pool.strike(index, "CUDA error")  # of the same process: it says nothing new
            assert (index in pool.alive) is (strike < STRIKES - 1 or index == 1)
            pool.restart(index)
            after(pool, ray, 10)
    assert pool.alive == [1, 2] and pool.up == [False, True, True]
    (said,) = pool.said  # type: ignore[attr-defined]
    assert said == (
        "generator 0 gets no more work: it failed 3 times in a row, last with CUDA error; 2 go on"
    )


def test_a_call_waits_for_a_place_at_which_it_has_not_failed(make: Make, ray: SimulatedRay) -> None:
    pool = make(2)
    after(pool, ray, 10)
    pool.restart(1)
    assert pool.free(1) == 0 and pool.free(1, avoiding={0}) is None  # the other one will be up again
    after(pool, ray, 10)
    assert pool.free(1, avoiding={0}) == 1


def test_groups_that_only_one_actor_fails_put_it_away(make: Make, ray: SimulatedRay) -> None:
    pool = make(2)
    after(pool, ray, 10)
    for _ in range(STRIKES):
        pool.strike(0, "group 3: OSError: stale", of_process=False)
    assert pool.alive == [1]


def test_who_never_came_up_is_no_reason_to_put_the_last_one_away(make: Make, ray: SimulatedRay) -> None:
    def broken(actor: Actor) -> None:
        if actor.place == 1:
            raise OSError("no such mount")

    pool = make(2, broken)
    after(pool, ray, 10)
    for _ in range(2 * STRIKES):
        pool.strike(0, "CUDA error", of_process=False)
    assert pool.alive == [0]


@pytest.mark.parametrize("kind", ["device", "bug"])
def test_what_everyone_is_asked_may_fail(make: Make, ray: SimulatedRay, kind: str) -> None:
    pool = make(2)
    after(pool, ray, 10)
    error = RuntimeError("CUDA error: unspecified launch failure") if kind == "device" else TypeError("a bug")
    pool.places[0].actor._working = lambda actor, task: (1.0, None, task_error(error))
    if kind == "bug":
        with pytest.raises(exceptions.RayTaskError):
            pool.everyone("rest", 20)
        return
    pool.everyone("rest", 20)
    assert pool.up == [False, True] and pool.places[0].health.strikes == 1


def test_an_environment_that_cannot_be_made_is_made_again(make: Make, ray: SimulatedRay) -> None:
    pool = make(1)
    after(pool, ray, 10)
    task = Task("__ray_ready__", (), [Ref()])
    ray.end(task, error=exceptions.RuntimeEnvSetupError("no working_dir"))
    pool.places[0].up = False
    pool._answered(0, task.refs[0])
    after(pool, ray, 30)
    assert pool.up == [True]


def test_one_good_call_takes_all_strikes_back(make: Make, ray: SimulatedRay) -> None:
    pool = make(2)
    after(pool, ray, 10)
    for _ in range(5 * STRIKES):
        pool.strike(0, "CUDA error")
        pool.restart(0)
        after(pool, ray, 10)
        pool.places[0].health.went_well()
    assert pool.alive == [0, 1]


def test_a_killed_actor_gets_work_again_once_it_is_up(make: Make, ray: SimulatedRay) -> None:
    pool = make(1)
    after(pool, ray, 10)
    pool.call(0, "generate")
    pool.restart(0)
    assert pool.free(1) is None
    after(pool, ray, 10)
    assert pool.free(1) == 0 and pool.starts == [2] and not pool.busy


def test_a_turn_is_one_wait_over_all_there_is(
    make: Make, ray: SimulatedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(50)
    after(pool, ray, 10)
    for index in range(50):
        pool.call(index, "generate")
    waits: list[int] = []
    wait = ray.wait
    monkeypatch.setattr(ray, "wait", lambda refs, **named: waits.append(len(refs)) or wait(refs, **named))
    pool.refresh()
    assert waits == [50]
