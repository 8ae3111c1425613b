"""Pool: identical actors that come and go, with work given to whoever is free."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.failures import ACTOR_LOST, RolloutError

ASK_EVERY_S = 0.2  # an actor that is restarting, whether it is up


class Pool:
    """Actors that Ray restarts without end. Only those that are up are given work.

    More may be asked for than there is room for: the others stay pending, which makes an autoscaler add
    nodes, and join when they start. A call is two return values: a large one that stays in the object
    store, and small metadata.

    Args:
        create: makes the actor of a place, with ``max_restarts=-1`` and ``max_task_retries=0``: a lost call
            is for the caller to give to somebody else.
        size: how many.
    """

    def __init__(self, create: Callable[[int], ActorHandle], size: int):
        self.actors = [create(place) for place in range(size)]
        self.up = [False] * size
        self.starts = [0] * size  # how often an actor came up
        self.progress = [time.monotonic()] * size  # when an actor last began or ended something
        self._starting: list[ray.ObjectRef | None] = [a.__ray_ready__.remote() for a in self.actors]
        self._ask_at = [0.0] * size  # when to ask an actor again whether it is up
        self._paused_until = [0.0] * size  # an actor whose node has no room
        self._calls: list[list[ray.ObjectRef]] = [[] for _ in self.actors]  # metadata under way, by actor

    def refresh(self) -> None:
        """Notices which calls have ended, and which actors have started.

        Raises:
            RolloutError: an actor cannot start: its constructor failed.
        """
        for index, refs in enumerate(self._calls):
            if refs:
                self._calls[index] = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1]
                if len(self._calls[index]) < len(refs):
                    self.progress[index] = time.monotonic()
        for index, ref in enumerate(self._starting):
            if ref is None:
                if not self.up[index] and time.monotonic() >= self._ask_at[index]:
                    self._starting[index] = self.actors[index].__ray_ready__.remote()
                continue
            if not ray.wait([ref], timeout=0)[0]:
                continue
            self._starting[index] = None
            try:
                ray.get(ref)
            except ACTOR_LOST as error:
                if getattr(error, "actor_init_failed", False):
                    raise RolloutError(f"{self.actors[index]} cannot start: {error}") from error
                self._ask_at[index] = time.monotonic() + ASK_EVERY_S
                continue
            self.up[index] = True
            self.starts[index] += 1

    def free(self, depth: float) -> int | None:
        """Index of the least busy actor that is up, or None when each has ``depth`` calls under way."""
        self.refresh()
        now = time.monotonic()
        up = [index for index, up in enumerate(self.up) if up and self._paused_until[index] <= now]
        index = min(up, key=lambda index: len(self._calls[index]), default=None)
        return index if index is not None and len(self._calls[index]) < depth else None

    @property
    def busy(self) -> bool:
        """Whether a call is under way, whoever made it."""
        return any(self._calls)

    def stalled(self, seconds: float) -> list[int]:
        """Indices of the actors that have calls, but have begun and ended none for so long."""
        self.refresh()
        now = time.monotonic()
        return [i for i, calls in enumerate(self._calls) if calls and now - self.progress[i] > seconds]

    def idle(self) -> list[int]:
        """Indices of the actors that are up and have no call under way."""
        self.refresh()
        return [index for index, up in enumerate(self.up) if up and not self._calls[index]]

    def wait(self, timeout_s: float) -> None:
        """Waits until a call has ended, well or badly, an actor has started, or ``timeout_s`` has passed."""
        refs = [ref for refs in self._calls for ref in refs] + [ref for ref in self._starting if ref]
        if refs:
            ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
        else:
            time.sleep(min(timeout_s, ASK_EVERY_S))

    def call(self, index: int, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Calls actor ``index``; the caller owns the two returned references."""
        if not self._calls[index]:
            self.progress[index] = time.monotonic()
        refs: list[ray.ObjectRef] = (
            getattr(self.actors[index], method).options(num_returns=2).remote(*arguments)
        )
        self._calls[index].append(refs[1])
        return refs

    def everyone(self, method: str, timeout_s: float) -> None:
        """Calls ``method`` on all actors that are up, and waits for them. Who does not answer is killed."""
        self.refresh()
        refs = {self.call(index, method)[1]: index for index, up in enumerate(self.up) if up}
        if not refs:
            return
        ended, late = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s, fetch_local=False)
        for ref in ended:
            try:
                ray.get(ref)
            except ACTOR_LOST:
                self.lost(refs[ref])
        for ref in late:
            self.restart(refs[ref])

    def lost(self, index: int) -> None:
        """A call at ``index`` failed because the actor died: no work for it until it is up again."""
        self.up[index] = False

    def pause(self, index: int, seconds: float) -> None:
        """Gives an actor no work for so long: the others get what it could not do."""
        self._paused_until[index] = time.monotonic() + seconds

    @property
    def pausing(self) -> bool:
        """Whether an actor pauses."""
        return any(until > time.monotonic() for until in self._paused_until)

    def restart(self, index: int) -> None:
        """Kills an actor that does not answer; Ray starts it again, and its calls fail as lost."""
        ray.kill(self.actors[index], no_restart=False)
        self.progress[index] = time.monotonic()
        self.lost(index)

    def close(self) -> None:
        """Kills the actors."""
        for actor in self.actors:
            ray.kill(actor)
