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

from actors.policy import PolicyRef
from actors.pool import Pool
from d1ray.interrupt import Interrupted
from d1ray.rl.rollout import Request

ACTOR_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.ObjectLostError,
)


class RolloutError(RuntimeError):
    """A rollout could not be had: the wait is over its deadline, or its call keeps failing."""


@dataclass(eq=False)
class Call:
    """One request under way: generate, then score."""

    request: Request
    policy: PolicyRef
    attempts: int = 0
    generator: int = -1
    scorer: int = -1
    table: ray.ObjectRef | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # empty until the group is scored

    @property
    def name(self) -> str:
        return f"group {self.request.prompts[0].group_id}"


class RolloutBuffer:
    """(staleness + 1) x prompts_per_step slots; a slot is taken by ``start`` and freed by ``release``.

    Calls wait here until a generator is free. A call whose actor died is issued again with the same
    group id, so its result is the same; after ``attempts`` tries the error surfaces. ``on_scored`` is told of
    every call as it finishes, in whatever order.
    """

    def __init__(
        self,
        generators: Pool,
        scorers: Pool,
        slots: int,
        deadline_s: float,
        attempts: int = 5,
        on_scored: Callable[[Call], None] = lambda call: None,
    ):
        self.on_scored = on_scored
        self.generators, self.scorers = generators, scorers
        self.slots, self.deadline_s, self.attempts = slots, deadline_s, attempts
        self.taken = 0
        self.started: list[Call] = []  # and not yet taken, in order
        self.waiting: deque[Call] = deque()
        self.running: dict[ray.ObjectRef, Call] = {}
        self.reissued = 0

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
            RolloutError: ``deadline_s`` passed without any group finishing; names groups and actors.
            Interrupted: ``interrupted()`` turned true.
        """
        last_progress = time.monotonic()
        while not all(call.metadata for call in self.started[:count]):
            if interrupted():
                raise Interrupted
            if self._collect(timeout_s=0.5):
                last_progress = time.monotonic()
            elif time.monotonic() - last_progress > self.deadline_s:
                raise RolloutError(self._overdue(count))
        taken, self.started = self.started[:count], self.started[count:]
        return taken

    def release(self, calls: list[Call]) -> None:
        """Frees the slots of consumed groups and drops their tables' references."""
        self.taken -= len(calls)
        for call in calls:
            call.table = None

    def _dispatch(self) -> None:
        while self.waiting and (generator := self.generators.free()) is not None:
            call = self.waiting.popleft()
            call.attempts += 1
            call.generator = generator
            call.scorer = self.scorers.least_busy()
            generated = self.generators.call(generator, "generate", call.request, call.policy)
            call.table, done = self.scorers.call(call.scorer, "score", *generated)
            self.running[done] = call

    def _collect(self, timeout_s: float) -> int:
        """Handles calls that have ended; returns how many groups became ready."""
        if not self.running:  # another buffer's calls keep the generators busy
            self.generators.wait(timeout_s)
            self._dispatch()
            return 0
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=timeout_s, fetch_local=True)
        more, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0) if done else ([], [])
        finished = 0
        for ref in {*done, *more}:
            call = self.running.pop(ref)
            try:
                call.metadata = ray.get(ref, timeout=self.deadline_s)
                self.on_scored(call)
                finished += 1
            except ACTOR_LOST as error:
                self._again(call, error)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, ACTOR_LOST):
                    raise
                self._again(call, error)
        self._dispatch()
        return finished

    def _again(self, call: Call, error: Exception) -> None:
        self.reissued += 1
        if call.attempts >= self.attempts:
            raise RolloutError(
                f"{call.name} failed {call.attempts} times; last on generator {call.generator}, "
                f"scorer {call.scorer}: {error}"
            ) from error
        self.waiting.appendleft(call)

    def _overdue(self, count: int) -> str:
        where = ", ".join(
            f"{call.name} at generator {call.generator} / scorer {call.scorer} (try {call.attempts})"
            for call in list(self.running.values())[:4]
        )
        ready = sum(bool(call.metadata) for call in self.started)
        return (
            f"no group finished within {self.deadline_s:g} s (cluster.deadline_s); {ready} of "
            f"{count} are ready, {len(self.waiting)} wait for a generator, under way: {where or 'none'}"
        )
