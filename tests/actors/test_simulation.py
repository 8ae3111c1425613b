"""Thousands of runs on a simulated cluster with faults from a seed; and bugs that they must find.

A failing seed is in the message: ``simulated_run.run(seed)`` replays it.
"""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from simulated_parts import SimulatedFolder, SimulatedGang
from simulated_ray import Stuck
from simulated_run import run
from simulated_world import Faults, Violation

from actors.buffer import RolloutBuffer
from actors.call import Call
from actors.failures import Kind
from actors.overdue import Overdue
from actors.pool import Pool
from actors.watch import Watch
from d1ray.programs import train
from d1ray.programs.recovery import RestartLadder
from d1ray.programs.training import Training
from d1ray.run.interrupt import Interrupted

SEEDS, MANY = 150, 10_000
WITHIN = 1000  # schedules, in which a bug is found


def runs(seeds: range) -> None:
    for seed in seeds:
        try:
            run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def test_no_schedule_of_faults_breaks_a_run() -> None:
    runs(range(SEEDS))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_schedule_of_many_breaks_a_run() -> None:
    runs(range(SEEDS, SEEDS + MANY))


def test_a_seed_is_replayed_exactly() -> None:
    one, other = run(7), run(7)
    assert (one.ray.now, one.happened, one.ended, one.learned) == (
        other.ray.now,
        other.happened,
        other.ended,
        other.learned,
    )


def test_the_faults_happen() -> None:
    happened: set[str] = set()
    for seed in range(60):
        happened |= {what for what, times in run(seed).happened.items() if times}
    assert happened >= {
        *("kill", "hang", "lose_node", "preempt", "cut_off", "slow", "fill", "break_device", "signal"),
        *("learner", "unstartable", "lost weights"),
    }


# Bugs, each planted in the real code


def forgets_the_lost(patch: pytest.MonkeyPatch) -> None:
    ended_badly = RolloutBuffer._ended_badly

    def forgetting(self: RolloutBuffer, call: Call, error: Exception) -> None:
        ended_badly(self, call, error)
        if call in self.waiting and call.tries[-1].kind is Kind.LOST:
            self.waiting.remove(call)

    patch.setattr(RolloutBuffer, "_ended_badly", forgetting)


def issues_twice(patch: pytest.MonkeyPatch) -> None:
    ended_badly = RolloutBuffer._ended_badly

    def doubling(self: RolloutBuffer, call: Call, error: Exception) -> None:
        ended_badly(self, call, error)
        if call in self.waiting:
            self.waiting.append(call)

    patch.setattr(RolloutBuffer, "_ended_badly", doubling)


def takes_who_is_first_done(patch: pytest.MonkeyPatch) -> None:
    take = RolloutBuffer.take

    def unordered(self: RolloutBuffer, count: int, interrupted: Callable[[], bool] = lambda: False) -> Any:
        self.started.sort(key=lambda call: not call.over)
        return take(self, count, interrupted)

    patch.setattr(RolloutBuffer, "take", unordered)


def generates_by_the_newest_policy(patch: pytest.MonkeyPatch) -> None:
    issue = RolloutBuffer._issue

    def newest(self: RolloutBuffer, call: Call, *where: int) -> bool:
        call.policy = max((c.policy for c in self.started if c.policy), key=lambda policy: policy.version)
        return issue(self, call, *where)

    patch.setattr(RolloutBuffer, "_issue", newest)


def never_kills_who_hangs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Overdue, "kill", lambda self, running: None)


def resumes_from_what_is_damaged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "simulated_parts.resumable", lambda found: sorted(found, key=lambda one: one.step, reverse=True)
    )


def leaks_slots(patch: pytest.MonkeyPatch) -> None:
    release = RolloutBuffer.release

    def leaking(self: RolloutBuffer, calls: list[Call]) -> None:
        release(self, calls)
        self.taken += sum(bool(call.tries) for call in calls)

    patch.setattr(RolloutBuffer, "release", leaking)


def keeps_its_incarnation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RestartLadder, "begins", lambda self, step, incarnation: 1)


def loses_news(patch: pytest.MonkeyPatch) -> None:
    add = Watch.add

    def losing(self: Watch, ref: Any, tell: Callable[[], None]) -> None:
        self.added = getattr(self, "added", 0) + 1
        add(self, ref, tell if self.added % 40 else lambda: None)

    patch.setattr(Watch, "add", losing)


def trusts_a_sick_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pool, "restart", lambda self, index: None)
    patch.setattr(Pool, "strike", lambda self, index, why: None)
    patch.setattr(Call, "failed_at", lambda self, scoring: set())


def saves_amid_a_step(patch: pytest.MonkeyPatch) -> None:
    def saving(training: Training) -> None:
        try:
            train.loop(training)
            training.finish()
        except Interrupted:
            training.save()
            raise

    patch.setattr(train, "to_the_end", saving)


def learns_from_what_was_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Training, "_kept", lambda self, taken: taken)


def waits_without_a_bound(patch: pytest.MonkeyPatch) -> None:
    turn = Watch.turn

    def unbounded(self: Watch, timeout_s: float = 0.0) -> None:
        if timeout_s and self._told:
            ray = turn.__globals__["ray"]
            ray.wait(list(self._told), num_returns=1, timeout=None)
        turn(self, timeout_s)

    patch.setattr(Watch, "turn", unbounded)


def forgets_a_table_that_was_lost(patch: pytest.MonkeyPatch) -> None:
    again = RolloutBuffer.again
    patch.setattr(RolloutBuffer, "again", lambda self, calls: again(self, calls[1:]))


PLANTED = [
    forgets_the_lost,
    issues_twice,
    takes_who_is_first_done,
    generates_by_the_newest_policy,
    never_kills_who_hangs,
    resumes_from_what_is_damaged,
    leaks_slots,
    keeps_its_incarnation,
    loses_news,
    trusts_a_sick_device,
    saves_amid_a_step,
    learns_from_what_was_dropped,
    waits_without_a_bound,
    forgets_a_table_that_was_lost,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(WITHIN):
            try:
                run(seed)
            except (Violation, Stuck, AssertionError, KeyError) as found:  # these of the driver itself
                assert (
                    not isinstance(found, AssertionError)
                    or "cannot become" in str(found)
                    or isinstance(found, Violation | Stuck)
                )
                return
    raise AssertionError(f"not found in {WITHIN} schedules")


@pytest.mark.parametrize("where", ["rollouts", "metrics"])
def test_a_full_disk_ends_the_command_in_a_line_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where only rollouts have no room, a checkpoint is written: no step is learned twice."""
    learned: list[int] = []
    learn, log = SimulatedGang.learn, SimulatedFolder.log

    def once_full(self: SimulatedGang, tables: Any, step: int, *more: Any) -> Any:
        learned.append(step)
        full = where == "rollouts" and learned == [0, 1]
        self.standing.unwritten = "rollouts/step-00002.parquet cannot be written: No space left" * full
        return learn(self, tables, step, *more)

    def log_full(self: SimulatedFolder, row: dict[str, Any]) -> None:
        if where == "metrics" and learned == [0, 1]:
            learned.append(-1)
            raise OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl")
        log(self, row)

    monkeypatch.setattr(SimulatedGang, "learn", once_full)
    monkeypatch.setattr(SimulatedFolder, "log", log_full)
    world = run(3, Faults())
    assert len(world.ended) == 1 and "No space left" in world.ended[0]
    if where == "rollouts":
        assert learned == list(range(len(learned))) and len(learned) > 2


def test_one_of_two_generators_with_a_sick_device_loses_no_group() -> None:
    """Errors come faster than results: a pool that gives work to whoever is free would feed it everything."""
    for seed in range(20):
        world = run(seed, Faults(sick_place=0), generators=2)
        assert not world.dropped and not world.ended


def test_one_of_two_generators_that_fails_every_group_loses_none() -> None:
    for seed in range(20):
        world = run(seed, Faults(failing_place=0), generators=2)
        assert not world.dropped and not world.ended


RARELY_S = 100.0  # between two of a kind
ALONE = [
    *(Faults(**{name: RARELY_S}) for name in ("kill", "hang", "node", "preempt", "cut_off", "slow", "full")),
    *(Faults(**{name: RARELY_S}) for name in ("sticky", "learner")),
    Faults(unstartable=0.2),
    Faults(bad_group=3),
    Faults(bad_group=-2),
    Faults(lost_weights=0.02),
    Faults(damaged=0.3),
]


@pytest.mark.parametrize("faults", ALONE)
def test_a_fault_of_one_kind_now_and_then_ends_no_command(faults: Faults) -> None:
    ended = [world.ended for seed in range(8) if (world := run(seed, faults, generators=3, scorers=2)).ended]
    assert not ended
