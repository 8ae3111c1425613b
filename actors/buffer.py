"""The rollout buffer: slots of references to groups that are generated, scored or waiting to be learned.

The driver keeps it. Rollouts themselves stay in the object store; a slot holds the reference to a
group's scored table, which the driver owns, so it outlives the actors that made it.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.failures import (
    INFRASTRUCTURE,
    STORE_FULL,
    LearnerLost,
    NoRoom,
    ObjectsLost,
    RolloutError,
    StoreFull,
    is_lost,
    one_line,
)
from actors.policy import PolicyRef
from actors.pool import Pool
from d1ray.config.errors import UserError
from d1ray.rl.rollout import Request
from d1ray.run.interrupt import Interrupted

LOST_TRIES, FAILED_TRIES = 5, 2  # of one call: ended by its actor's death, and by an error of its own
PAUSE_S = 1.0  # of actors whose node's object store is full


@dataclass(eq=False)
class Call:
    """One request under way: generate, then score."""

    request: Request
    policy: PolicyRef | None  # until it is released: whoever names a policy keeps it in the object store
    lost: int = 0  # tries that ended with their actor
    done_before: int = 0  # other calls that had ended well when its first try began
    failed: int = 0  # tries that ended with an error of their own
    no_room_since: float = 0.0  # when an object store first was too full for it
    generator: int = -1
    scorer: int = -1
    loads: PolicyRef | None = None  # the objects that the try under way takes the policy from
    since: float = 0.0  # when its present stage began
    overdue: str = ""  # which actor was killed because it did not end its try
    generated: ray.ObjectRef | None = None  # what generation says of the try under way
    scoring: bool = False  # whether generation has ended
    table: ray.ObjectRef | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # empty until the group is scored
    dropped: str = ""  # why it was given up

    @property
    def name(self) -> str:
        return f"group {self.request.prompts[0].group_id}"

    @property
    def over(self) -> bool:
        return bool(self.metadata or self.dropped)


class RolloutBuffer:
    """(staleness + 1) x prompts_per_step slots; a slot is taken by ``start`` and freed by ``release``.

    Calls wait here until a generator is free. A call whose actor died, or was killed because it did not
    answer for ``deadline_s``, is issued again with the same group id, so its result is the same. After
    ``LOST_TRIES`` the error surfaces; or, where others were done meanwhile, the call is dropped: it is what
    its actors die of. One for which a node's object store has no room is issued again until
    ``deadline_s`` have passed. One that fails by itself ``FAILED_TRIES`` times is dropped, and says why.
    ``on_scored`` is told of every call as it finishes, in whatever order; ``note`` what a user should know.
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
        self.done = 0  # calls that ended well
        self.reissued = 0
        self.killed = 0  # actors that did not answer

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
        while not all(call.over for call in self.started[:count]):
            self._collect(timeout_s=0.5)
            if interrupted():
                raise Interrupted
            if self.running or self.generators.busy or self.generators.pausing or self.scorers.pausing:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.deadline_s:
                raise RolloutError(self._stuck(count))
        taken, self.started = self.started[:count], self.started[count:]
        return taken

    def tend(self) -> None:
        """Gives work to whoever is free, without waiting: for a driver that waits for something else."""
        self._collect(timeout_s=0)

    def release(self, calls: list[Call]) -> None:
        """Frees the slots of consumed groups, and drops the references to their tables and policies."""
        self.taken -= len(calls)
        for call in calls:
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
            "generators": len(self.generators.up),
            "scorers_up": sum(self.scorers.up),
            "actors_killed": self.killed,
        }

    def again(self, calls: list[Call]) -> None:
        """Generates taken groups once more, because their tables were lost; they will be taken first."""
        for call in reversed(calls):
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
            generator, scorer = self.generators.free(depth), self.scorers.free(math.inf)
            if generator is None or scorer is None:
                return
            call = self.waiting.popleft()
            call.generator, call.scorer, call.since = generator, scorer, time.monotonic()
            assert call.policy is not None
            call.loads = self._objects_of(call.policy)
            if not call.lost:
                call.done_before = self.done
            try:
                generated = self.generators.call(generator, "generate", call.request, call.loads)
                call.generated, call.scoring = generated[1], False
                call.table, done = self.scorers.call(scorer, "score", *generated)
            except STORE_FULL:  # of this process's node: large arguments are objects, too
                self._no_room(call)
                return
            self.running[done] = call

    def _objects_of(self, policy: PolicyRef) -> PolicyRef:
        copied = self.copied
        if copied and (copied.incarnation, copied.version) == (policy.incarnation, policy.version):
            return copied
        return policy

    def _collect(self, timeout_s: float) -> None:
        """Handles calls that have ended or do not end."""
        if not self.running:  # nobody is up, or calls that are not of this buffer keep them busy
            self.generators.wait(timeout_s)
            self._kill_the_overdue()
            self._dispatch()
            return
        generated = [call.generated for call in self.running.values() if not call.scoring]
        everything = [*self.running, *generated]
        if ray.wait(everything, num_returns=1, timeout=timeout_s, fetch_local=False)[0]:
            ended, _ = ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
            self._note_generated(set(ended))
            for ref in ended:
                if ref in self.running:
                    self._end(self.running.pop(ref), ref)
        self._kill_the_overdue()
        self._dispatch()

    def _note_generated(self, ended: set[ray.ObjectRef]) -> None:
        for call in self.running.values():
            if not call.scoring and call.generated in ended:
                call.scoring, call.since = True, time.monotonic()

    def _end(self, call: Call, ref: ray.ObjectRef) -> None:
        policy = call.policy
        assert policy is not None
        try:
            metadata = ray.get(ref, timeout=self.deadline_s)
            if (metadata["incarnation"], metadata["policy_version"]) != (policy.incarnation, policy.version):
                raise RolloutError(f"{call.name} was generated by another policy than it was asked of")
            self.on_scored(call)
            call.metadata = metadata  # the call is over only now
            call.no_room_since, call.generated = 0.0, None
            self.done += 1
            if self.copied and policy.version > self.copied.version:
                self.copied = None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ObjectsLost):
                raise LearnerLost(f"{call.name} at generator {call.generator}: {one_line(error)}") from error
            elif isinstance(error.cause, NoRoom):
                if call.loads is self._objects_of(policy):
                    self.copied = policy.renewed()
                self._no_room(call)
            elif isinstance(error.cause, STORE_FULL):
                self._no_room(call)
            elif is_lost(error):
                self._lost(call, error)
            elif isinstance(error.cause, UserError):
                raise
            else:
                self._failed(call, error)
        except STORE_FULL:
            self._no_room(call)
        except INFRASTRUCTURE as error:
            self._lost(call, error)

    def _no_room(self, call: Call) -> None:
        """The actor whose node is full pauses, and the others get its work."""
        now, where = time.monotonic(), f"{call.name} at generator {call.generator}, scorer {call.scorer}"
        if not any(other.no_room_since for other in (call, *self.waiting)):
            self.note(f"{where}: the object store is full; it is tried again for {self.deadline_s:g} s")
        call.no_room_since = call.no_room_since or now
        if now - call.no_room_since > self.deadline_s:
            raise StoreFull(f"{where} has no room for its rollouts or weights", now - call.no_room_since)
        if call.generated and _succeeded(call.generated):
            self.scorers.pause(call.scorer, PAUSE_S)
        else:
            self.generators.pause(call.generator, PAUSE_S)
        self.reissued += 1
        self.waiting.appendleft(call)

    def _lost(self, call: Call, error: Exception) -> None:
        """The death of either actor may be behind it: neither gets more until it answers."""
        self.generators.lost(call.generator)
        self.scorers.lost(call.scorer)
        self.reissued += 1
        call.lost += 1
        if call.lost >= LOST_TRIES:
            said = (
                f"was lost {call.lost} times; last at generator {call.generator}, scorer {call.scorer}: "
                f"{call.overdue or one_line(error)}"
            )
            if self.done == call.done_before:
                raise RolloutError(f"{call.name} {said}") from error
            call.dropped = said
            return
        call.overdue = ""
        self.waiting.appendleft(call)

    def _failed(self, call: Call, error: Exception) -> None:
        call.failed += 1
        if call.failed < FAILED_TRIES:
            self.waiting.appendleft(call)
            return
        call.dropped = (
            f"failed {call.failed} times, last at generator {call.generator}, scorer {call.scorer}: "
            f"{one_line(error)}"
        )

    def _kill_the_overdue(self) -> None:
        """Kills actors that work on one call for longer than ``deadline_s``."""
        self.generators.refresh()
        self.scorers.refresh()
        now = time.monotonic()
        for call in self.running.values():
            pool, index = (self.scorers, call.scorer) if call.scoring else (self.generators, call.generator)
            if now - max(call.since, pool.progress[index]) > self.deadline_s:
                pool.restart(index)
                self.killed += 1
                call.overdue = (
                    f"{'scorer' if call.scoring else 'generator'} {index} did not end it within "
                    f"{self.deadline_s:g} s (cluster.deadline_s) and was killed"
                )
        for index in self.generators.stalled(self.deadline_s):  # at a call that nobody waits for any more
            self.generators.restart(index)
            self.killed += 1

    def _stuck(self, count: int) -> str:
        ready = sum(call.over for call in self.started[:count])
        waiting = ", ".join(call.name for call in list(self.waiting)[:4])
        return (
            f"no group is under way since {self.deadline_s:g} s (cluster.deadline_s): {ready} of {count} are "
            f"ready, {len(self.waiting)} wait ({waiting}); {sum(self.generators.up)} of "
            f"{len(self.generators.actors)} generators and {sum(self.scorers.up)} of "
            f"{len(self.scorers.actors)} scorers are up"
        )


def _succeeded(ref: ray.ObjectRef) -> bool:
    try:
        ray.get(ref, timeout=0)
    except ray.exceptions.RayError:
        return False
    return True
