"""The rollout buffer: slots of references to groups that are generated, scored or waiting to be learned.

The driver keeps it. Rollouts themselves stay in the object store; a slot holds the reference to a
group's scored table, which the driver owns, so it outlives the actors that made it.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import ray

from actors.call import Call, Status, Try
from actors.failures import (
    STORE_FULL,
    Kind,
    LearnerLost,
    NoRoom,
    ObjectsLost,
    RolloutError,
    StoreFull,
    kind_of,
    one_line,
)
from actors.overdue import Overdue
from actors.policy import PolicyRef
from actors.pool import Pool
from actors.retry import PASSING, Answer, answer, in_a_row_since
from d1ray.config.errors import RunFailed, UserError
from d1ray.rl.rollout import Request
from d1ray.run.interrupt import Interrupted

PAUSE_S = 1.0  # of actors whose node has no room, or fails them
TURN_S = 0.5  # longest wait between two looks at a signal
LESS_MEMORY = (
    "; shorten rl.sampling.gen_length or data.max_prompt_length, lower rl.micro_batch_tokens, or give a "
    "generator more memory"
)


class RolloutBuffer:
    """(staleness + 1) x prompts_per_step slots; a slot is taken by ``start`` and freed by ``release``.

    Calls wait here until a generator is free. One whose try ended badly, or whose actor was killed because
    it did not answer for ``deadline_s``, is issued again with the same group id, so its result is the same;
    ``retry.answer`` says how often, and whether it is then dropped, saying why, or ends the run.
    ``on_scored`` is told of every call as it finishes, in whatever order; ``note`` what a user should know.
    Both pools share one watch.
    """

    def __init__(
        self,
        generators: Pool,
        scorers: Pool,
        slots: int,
        deadline_s: float,
        on_scored: Callable[[Call], None] = lambda call: None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.on_scored, self.note = on_scored, note
        self.generators, self.scorers = generators, scorers
        self.slots, self.deadline_s = slots, deadline_s
        self.taken = 0
        self.started: list[Call] = []  # and not yet taken, in order
        self.waiting: deque[Call] = deque()
        self.running: dict[ray.ObjectRef, Call] = {}
        self.copied: PolicyRef | None = None  # the newest policy that some node had no room for
        self.trouble: RunFailed | None = None  # that was met by ``tend``
        self.done = 0  # calls that ended well
        self.reissued = 0
        self.overdue = Overdue(generators, scorers, deadline_s)
        self._ended: deque[ray.ObjectRef] = deque()  # of the calls running

    @property
    def killed(self) -> int:
        """Actors that did not answer."""
        return self.overdue.killed

    def has_slot(self) -> bool:
        return self.taken < self.slots

    def start(self, request: Request, policy: PolicyRef) -> None:
        """Takes a slot and generates ``request`` as soon as a generator is free."""
        self.taken += 1
        self.started.append(Call(request, policy))
        self.waiting.append(self.started[-1])
        self._dispatch()

    def take(self, count: int, interrupted: Callable[[], bool] = lambda: False) -> list[Call]:
        """Waits for the ``count`` groups that were started first; returns them in the order of their start.

        Unblocked by scorers finishing. Which groups are taken does not depend on who is fast, so
        overlapped runs are deterministic too. Their slots stay taken until ``release``.

        Raises:
            RolloutError: a call was lost too often, or no actor is up for ``deadline_s``; names groups and
                actors.
            StoreFull: there was no room for a call's objects for ``deadline_s``.
            LearnerLost: the weights a call asks for are gone.
            Interrupted: ``interrupted()`` turned true.
        """
        idle_since = time.monotonic()
        if interrupted():  # also when there is nothing to wait for: who is told to go begins nothing more
            raise Interrupted
        if self.trouble is not None:
            raise self.trouble
        while not all(call.over for call in self.started[:count]):
            self._collect(TURN_S)
            if interrupted():
                raise Interrupted
            if self.running or self.generators.busy or self.generators.pausing or self.scorers.pausing:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.deadline_s:
                raise RolloutError(self._stuck(count))
        taken, self.started = self.started[:count], self.started[count:]
        for call in taken:
            call.becomes(Status.TAKEN)
        return taken

    def tend(self) -> None:
        """Gives work to whoever is free, without waiting: for a driver that waits for something else. What
        ends the run is raised by the next ``take``: a step under way may still end."""
        if self.trouble is None:
            try:
                self._collect(timeout_s=0)
            except RunFailed as error:
                self.trouble = error

    def release(self, calls: list[Call]) -> None:
        """Frees the slots of consumed groups, and drops the references to their tables and policies."""
        self.taken -= len(calls)
        for call in calls:
            call.becomes(Status.RELEASED)
            call.table = call.policy = call.loads = None

    def standing(self) -> dict[str, float]:
        """How full it is and who is up, as live metrics; another thread may ask."""
        ready = sum(call.over for call in list(self.started))
        return {
            "slots": self.slots,
            "slots_taken": self.taken,
            "groups_waiting": len(self.waiting),
            "groups_running": len(self.running),
            "groups_ready": ready,
            "generators_up": sum(self.generators.up),
            "generators": len(self.generators.places),
            "scorers_up": sum(self.scorers.up),
            "actors_killed": self.killed,
        }

    def again(self, calls: list[Call]) -> None:
        """Generates taken groups once more, because their tables were lost; they will be taken first."""
        for call in reversed(calls):
            call.becomes(Status.WAITING)
            call.metadata, call.table = {}, None
            self.started.insert(0, call)
            self.waiting.appendleft(call)
        self.reissued += len(calls)
        self._dispatch()

    def _dispatch(self) -> None:
        while self.waiting:
            # A second call at an actor hides the way to it. It must not wait there while others idle, even at
            # a slow one, so the others need enough to do meanwhile.
            depth = 2 if len(self.waiting) > 2 * sum(self.generators.up) else 1
            if self.generators.free(depth) is None:
                return
            for call in self.waiting:
                generator = self.generators.free(depth, call.failed_at(scoring=False))
                if generator is not None:
                    break
            else:
                return  # whoever is free has failed at all that wait
            scorer = self.scorers.free(math.inf, call.failed_at(scoring=True))
            if scorer is None:
                return
            self.waiting.remove(call)
            if not self._issue(call, generator, scorer):
                return

    def _issue(self, call: Call, generator: int, scorer: int) -> bool:
        """Begins a try; False if the driver's own node has no room for it."""
        assert call.policy is not None
        call.becomes(Status.GENERATING)
        call.generator, call.scorer, call.since = generator, scorer, time.monotonic()
        call.loads = self._objects_of(call.policy)
        if not call.tries:
            call.done_before = self.done
        try:
            told = partial(self._generated, call, len(call.tries))
            request = replace(call.request, parts=2 ** call.count(Kind.MEMORY))
            generated = self.generators.call(generator, "generate", request, call.loads, ended=told)
            call.generated = generated[1]
            refs: list[ray.ObjectRef] = []
            refs += self.scorers.call(scorer, "score", *generated, ended=lambda: self._ended.append(refs[1]))
        except STORE_FULL as error:  # large arguments are objects, too
            self._ended_badly(call, error)
            return False
        call.table = refs[0]
        self.running[refs[1]] = call
        return True

    def _generated(self, call: Call, tried: int) -> None:
        """Also where that failed: then its scoring ends at once."""
        if call.status is Status.GENERATING and len(call.tries) == tried:
            call.becomes(Status.SCORING)
            call.since = time.monotonic()

    def _objects_of(self, policy: PolicyRef) -> PolicyRef:
        copied = self.copied
        if copied and (copied.incarnation, copied.version) == (policy.incarnation, policy.version):
            return copied
        return policy

    def _collect(self, timeout_s: float) -> None:
        """Handles calls that have ended or do not end."""
        self.generators.watch.turn(timeout_s)
        while self._ended:
            ref = self._ended.popleft()
            self._end(self.running.pop(ref), ref)
        self.generators.tend()
        self.scorers.tend()
        self.overdue.kill(self.running.values())
        self._dispatch()

    def _end(self, call: Call, ref: ray.ObjectRef) -> None:
        policy = call.policy
        assert policy is not None
        try:
            metadata = ray.get(ref, timeout=self.deadline_s)
            if (metadata["incarnation"], metadata["policy_version"]) != (policy.incarnation, policy.version):
                raise RolloutError(f"{call.name} was generated by another policy than it was asked of")
            self.on_scored(call)
        except ray.exceptions.RayError as error:
            behind = getattr(error, "cause", None)
            if isinstance(behind, ObjectsLost):
                raise LearnerLost(f"{call.name} at generator {call.generator}: {one_line(error)}") from error
            if isinstance(behind, UserError):
                raise
            if isinstance(behind, NoRoom) and call.loads is self._objects_of(policy):
                self.copied = policy.renewed()
            self._ended_badly(call, error)
        else:
            call.metadata, call.generated = metadata, None
            call.becomes(Status.SCORED)
            self._ended_well(call, policy)

    def _ended_well(self, call: Call, policy: PolicyRef) -> None:
        self.done += 1
        if self.copied and policy.version > self.copied.version:
            self.copied = None
        self.generators.places[call.generator].health.went_well()
        self.scorers.places[call.scorer].health.went_well()
        for scoring, pool, done_by in (
            (False, self.generators, call.generator),
            (True, self.scorers, call.scorer),
        ):
            for one in call.tries:  # what another could do, these should have done
                index = one.scorer if scoring else one.generator
                if one.scoring is scoring and one.kind in (Kind.GROUP, Kind.SYSTEM) and index != done_by:
                    pool.strike(index, f"{call.name}: {one.said}", of_process=False)

    def _ended_badly(self, call: Call, error: Exception) -> None:
        """Records the try, sees to the actors behind it, and does with the call as ``retry.answer`` says."""
        kind, said, scoring = kind_of(error), call.overdue or one_line(error), _is_generated(call)
        pool, index = (self.scorers, call.scorer) if scoring else (self.generators, call.generator)
        where = f"generator {call.generator}, scorer {call.scorer}"
        call.tries.append(Try(call.generator, call.scorer, scoring, kind, said, time.monotonic()))
        call.overdue, call.generated = "", None
        elsewhere = not call.failed_at(scoring).issuperset(pool.alive)
        told = call.count(kind) > 1 or any(other.count(kind) for other in self.waiting)
        if kind is Kind.NO_ROOM and not told:
            self.note(
                f"{call.name} at {where}: the object store is full; it is tried again for "
                f"{self.deadline_s:g} s"
            )
        if kind in PASSING:
            pool.pause(index, PAUSE_S)
        elif kind in (Kind.LOST, Kind.PREEMPTED):  # either may have died: no more until they answer
            self.generators.lost(call.generator)
            self.scorers.lost(call.scorer)
        elif kind in (Kind.DEVICE, Kind.MEMORY):
            pool.device_failed(index, said)
        decided = answer(call.tries, self.done > call.done_before, elsewhere, self.deadline_s)
        if decided is Answer.AGAIN:
            self.reissued += kind is not Kind.GROUP
            call.becomes(Status.WAITING)
            self.waiting.appendleft(call)
        elif kind is Kind.NO_ROOM:
            waited_s = time.monotonic() - in_a_row_since(call.tries)
            full = f"{call.name} at {where} has no room for its rollouts or weights"
            raise StoreFull(full, waited_s) from error
        else:
            how = "was lost" if kind in (Kind.LOST, Kind.PREEMPTED) else "failed"
            advice = LESS_MEMORY if kind is Kind.MEMORY else ""
            why = f"{how} {call.count(kind)} times; last at {where}: {said}{advice}"
            if decided is Answer.END:
                raise RolloutError(f"{call.name} {why}") from error
            call.becomes(Status.DROPPED)
            call.dropped = why

    def _stuck(self, count: int) -> str:
        ready = sum(call.over for call in self.started[:count])
        waiting = ", ".join(call.name for call in list(self.waiting)[:4])
        failed = self.generators.why or self.scorers.why
        return (
            f"no group is under way since {self.deadline_s:g} s (cluster.deadline_s): {ready} of {count} are "
            f"ready, {len(self.waiting)} wait ({waiting}); {sum(self.generators.up)} of "
            f"{len(self.generators.places)} generators and {sum(self.scorers.up)} of "
            f"{len(self.scorers.places)} scorers are up{failed and f'; last not to start: {failed}'}"
        )


def _is_generated(call: Call) -> bool:
    """Whether the try under way has got beyond its generator."""
    if call.status is not Status.SCORING or call.generated is None:
        return False
    try:
        ray.get(call.generated, timeout=0)
    except ray.exceptions.RayError:
        return False
    return True
