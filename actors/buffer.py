"""The rollout buffer: slots of references to groups that are generated, scored or waiting to be learned.

The driver keeps it. Rollouts themselves stay in the object store; a slot holds the reference to a
group's scored table, which the driver owns, so it outlives the actors that made it.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.failures import INFRASTRUCTURE, RolloutError, is_lost
from actors.policy import PolicyRef
from actors.pool import Pool
from d1ray.errors import UserError
from d1ray.interrupt import Interrupted
from d1ray.rl.rollout import Request

LOST_TRIES, FAILED_TRIES = 5, 2  # of one call: ended by its actor's death, and by an error of its own


@dataclass(eq=False)
class Call:
    """One request under way: generate, then score."""

    request: Request
    policy: PolicyRef | None  # until it is released: whoever names a policy keeps it in the object store
    lost: int = 0  # tries that ended with their actor
    failed: int = 0  # tries that ended with an error of their own
    generator: int = -1
    scorer: int = -1
    since: float = 0.0  # when its present stage began
    generated: ray.ObjectRef | None = None  # of the try under way, until generation has ended
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
    answer for ``deadline_s``, is issued again with the same group id, so its result is the same; after
    ``LOST_TRIES`` the error surfaces. One that fails by itself ``FAILED_TRIES`` times is dropped, and says
    why. ``on_scored`` is told of every call as it finishes, in whatever order.
    """

    def __init__(
        self,
        generators: Pool,
        scorers: Pool,
        slots: int,
        deadline_s: float,
        on_scored: Callable[[Call], None] = lambda call: None,
    ):
        self.on_scored = on_scored
        self.generators, self.scorers = generators, scorers
        self.slots, self.deadline_s = slots, deadline_s
        self.taken = 0
        self.started: list[Call] = []  # and not yet taken, in order
        self.waiting: deque[Call] = deque()
        self.running: dict[ray.ObjectRef, Call] = {}
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
            Interrupted: ``interrupted()`` turned true.
        """
        idle_since = time.monotonic()
        if interrupted():  # also when there is nothing to wait for: who is told to go begins nothing more
            raise Interrupted
        while not all(call.over for call in self.started[:count]):
            self._collect(timeout_s=0.5)
            if interrupted():
                raise Interrupted
            if self.running:
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
            call.table = call.policy = None

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
            # A second call at an actor hides the way to it, but must not be there while another one idles.
            depth = 2 if len(self.waiting) > sum(self.generators.up) else 1
            generator, scorer = self.generators.free(depth), self.scorers.free(len(self.running) + 1)
            if generator is None or scorer is None:
                return
            call = self.waiting.popleft()
            call.generator, call.scorer, call.since = generator, scorer, time.monotonic()
            generated = self.generators.call(generator, "generate", call.request, call.policy)
            call.generated = generated[1]
            call.table, done = self.scorers.call(scorer, "score", *generated)
            self.running[done] = call

    def _collect(self, timeout_s: float) -> None:
        """Handles calls that have ended or do not end."""
        if not self.running:  # nobody is up, or another buffer's calls keep them busy
            self.generators.wait(timeout_s)
            self._dispatch()
            return
        generated = [call.generated for call in self.running.values() if call.generated is not None]
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
            if call.generated in ended:
                call.generated, call.since = None, time.monotonic()

    def _end(self, call: Call, ref: ray.ObjectRef) -> None:
        try:
            metadata = ray.get(ref, timeout=self.deadline_s)
            assert call.policy is not None
            if (metadata["incarnation"], metadata["policy_version"]) != (
                call.policy.incarnation,
                call.policy.version,
            ):
                raise RolloutError(f"{call.name} was generated by another policy than it was asked of")
            self.on_scored(call)
            call.metadata = metadata  # the call is over only now
        except INFRASTRUCTURE as error:
            self._lost(call, error)
        except ray.exceptions.RayTaskError as error:
            if is_lost(error):
                self._lost(call, error)
            elif isinstance(error.cause, UserError):
                raise
            else:
                self._failed(call, error)

    def _lost(self, call: Call, error: Exception) -> None:
        """The death of either actor may be behind it: neither gets more until it answers."""
        self.generators.lost(call.generator)
        self.scorers.lost(call.scorer)
        self.reissued += 1
        call.lost += 1
        if call.lost >= LOST_TRIES:
            raise RolloutError(
                f"{call.name} was lost {call.lost} times; last at generator {call.generator}, "
                f"scorer {call.scorer}: {error}"
            ) from error
        self.waiting.appendleft(call)

    def _failed(self, call: Call, error: Exception) -> None:
        call.failed += 1
        if call.failed < FAILED_TRIES:
            self.waiting.appendleft(call)
            return
        reason = str(error).strip().splitlines()
        call.dropped = (
            f"failed {call.failed} times, last at generator {call.generator}, scorer {call.scorer}: "
            f"{reason[-1] if reason else type(error).__name__}"
        )

    def _kill_the_overdue(self) -> None:
        """Kills actors that work on one call for longer than ``deadline_s``."""
        now = time.monotonic()
        for call in self.running.values():
            generating = call.generated is not None
            pool, index = (self.generators, call.generator) if generating else (self.scorers, call.scorer)
            if pool.up[index] and now - max(call.since, pool.progress[index]) > self.deadline_s:
                pool.restart(index)
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
