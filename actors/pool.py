"""Pool: identical actors, with work given to whoever is free."""

from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle


class Pool:
    """A fixed number of actors that Ray restarts without end.

    A call is two return values: a large one that stays in the object store, and small metadata.
    The pool keeps at most ``depth`` calls at an actor, so that a slow one does not hoard work.
    """

    def __init__(self, create: Callable[[], ActorHandle], size: int, depth: int = 2):
        self.actors = [create() for _ in range(size)]
        self.depth = depth
        self.in_flight = [0] * size

    def free(self) -> int | None:
        """Index of the least busy actor that can take a call, or None."""
        index = min(range(len(self.actors)), key=self.in_flight.__getitem__)
        return index if self.in_flight[index] < self.depth else None

    def call(self, index: int, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Calls actor ``index``; the caller owns the two returned references."""
        self.in_flight[index] += 1
        refs: list[ray.ObjectRef] = (
            getattr(self.actors[index], method).options(num_returns=2).remote(*arguments)
        )
        return refs

    def done(self, index: int) -> None:
        """Tells the pool that a call of actor ``index`` has ended, well or badly."""
        self.in_flight[index] -= 1

    def close(self) -> None:
        """Kills the actors."""
        for actor in self.actors:
            ray.kill(actor)
