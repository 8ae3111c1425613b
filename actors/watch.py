"""Watch: one `ray.wait` for everything that a driver has under way, and who is told of what has ended."""

import time
from collections.abc import Callable

import ray

LONGEST_WAIT_S = 0.2  # between two looks at what has no reference: restarts, pauses, deadlines


class Watch:
    """References under way, each with those who are told, once, when it has ended, well or badly.

    One wait covers whatever there is: two microseconds a reference and turn, however many actors there are.
    """

    def __init__(self) -> None:
        self._told: dict[ray.ObjectRef, list[Callable[[], None]]] = {}

    def add(self, ref: ray.ObjectRef, tell: Callable[[], None]) -> None:
        """Has ``tell`` called by the first turn that finds ``ref`` ended."""
        self._told.setdefault(ref, []).append(tell)

    def turn(self, timeout_s: float = 0.0) -> None:
        """Waits until something has ended, at most ``timeout_s`` or ``LONGEST_WAIT_S``; tells of everything
        that has."""
        timeout_s = min(timeout_s, LONGEST_WAIT_S)
        if not self._told:
            time.sleep(timeout_s)
            return
        refs = list(self._told)
        ended, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        if not ended and timeout_s:
            ended, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
        for ref in ended:
            for tell in self._told.pop(ref):
                tell()
