"""Pool: identical actors, with work given to whoever is free."""

from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle


class Pool:
    """A fixed number of actors that Ray restarts without end, with the calls that were at them.

    A call is two return values: a large one that stays in the object store, and small metadata.
    At most ``depth`` calls are at an actor at a time, so that a slow one does not hoard work.
    """

    def __init__(self, create: Callable[[], ActorHandle], size: int, depth: int):
        self.actors = [create() for _ in range(size)]
        self.depth = depth
        self._calls: list[list[ray.ObjectRef]] = [[] for _ in self.actors]  # metadata under way, by actor

    def least_busy(self) -> int:
        """Index of the actor with the fewest calls under way."""
        for index, refs in enumerate(self._calls):
            if refs:
                self._calls[index] = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1]
        return min(range(len(self.actors)), key=lambda index: len(self._calls[index]))

    def free(self) -> int | None:
        """Index of the least busy actor, or None when each has ``depth`` calls under way."""
        index = self.least_busy()
        return index if len(self._calls[index]) < self.depth else None

    def wait(self, timeout_s: float) -> None:
        """Waits until a call has ended, well or badly, or ``timeout_s`` has passed."""
        under_way = [ref for refs in self._calls for ref in refs]
        if under_way:
            ray.wait(under_way, num_returns=1, timeout=timeout_s, fetch_local=False)

    def call(self, index: int, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Calls actor ``index``; the caller owns the two returned references."""
        refs: list[ray.ObjectRef] = (
            getattr(self.actors[index], method).options(num_returns=2).remote(*arguments)
        )
        self._calls[index].append(refs[1])
        return refs

    def close(self) -> None:
        """Kills the actors."""
        for actor in self.actors:
            ray.kill(actor)
