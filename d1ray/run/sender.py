"""Sender: hands rows to a tracker from a thread of its own, again and again while that does not take them.

A run never waits for it, and rows are lost only where a bound says so; each such is counted, and told.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

logger = logging.getLogger(__name__)
MOST_WAITING = 20_000  # rows; the oldest give way to new ones
MOST_TRIES = 20  # of one row, more than an hour: then it is the row that is wrong
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0


class Receiver(Protocol):
    """Takes rows."""

    def log(self, row: Mapping[str, Any], at: float) -> None:
        """A row, and the Unix time when it was logged."""

    def close(self) -> None:
        """There are no more."""


class Sender:
    """Rows on their way to ``receiver``, in their order.

    Attributes:
        waiting: how many are on their way.
        lost: how many were given up.
    """

    def __init__(self, name: str, receiver: Receiver, start: bool = True):
        self.name, self.receiver, self.lost = name, receiver, 0
        self._rows: deque[tuple[Mapping[str, Any], float]] = deque()
        self._tries, self._told = 0, False
        self._changed, self._ending = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        if start:
            self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._rows)

    def put(self, row: Mapping[str, Any]) -> None:
        """Takes a row over; returns at once."""
        with self._changed:
            if len(self._rows) >= MOST_WAITING:
                self._rows.popleft()
                self._tries = 0
                self._lose("the oldest rows give way")
            self._rows.append((row, time.time()))
            self._changed.notify()

    def end(self) -> None:
        """No more rows come: what waits is tried at short intervals."""
        self._ending.set()
        with self._changed:
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Waits until all is sent and the receiver closed, so long at most; tells what is not."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("%s does not take the end of the run, nor %d rows of it", self.name, self.waiting)
        if self.lost:
            logger.warning("%s lacks %d rows of the run", self.name, self.lost)

    def send(self) -> float:
        """Tries to hand over the next row; returns the seconds to wait before another one."""
        with self._changed:
            if not self._rows:
                return 0.0
            head = self._rows[0]
        try:
            self.receiver.log(*head)
        except Exception as error:  # whatever a network or a server does
            return self._failed(head, error)
        self._done(head)
        return 0.0

    def _failed(self, head: tuple[Mapping[str, Any], float], error: Exception) -> float:
        self._tries += 1
        if not self._told:
            self._told = True
            logger.warning(
                "%s does not take rows: %s; they wait, up to %d of them, and are sent again",
                self.name,
                error,
                MOST_WAITING,
            )
        if self._tries >= MOST_TRIES:
            if self._done(head):
                self._lose(f"one was tried {MOST_TRIES} times: {error}")
            return FIRST_PAUSE_S
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._tries - 1))

    def _done(self, head: tuple[Mapping[str, Any], float]) -> bool:
        """Takes a row off the queue, unless it gave way meanwhile."""
        with self._changed:
            self._tries = 0
            there = bool(self._rows) and self._rows[0] is head
            if there:
                self._rows.popleft()
            return there

    def _lose(self, why: str) -> None:
        if not self.lost:
            logger.warning("%s loses rows: %s; how many is told at the end", self.name, why)
        self.lost += 1

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._rows and not self._ending.is_set():
                    self._changed.wait()
                if not self._rows:
                    break
            if pause_s := self.send():
                self._ending.wait(pause_s)
                if self._ending.is_set():
                    time.sleep(FIRST_PAUSE_S)
        try:
            self.receiver.close()
        except Exception as error:  # as in ``send``
            logger.warning("%s did not take the end of the run: %s", self.name, error)
