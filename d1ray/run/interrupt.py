"""Ctrl-C as a wish: the first one asks the run to checkpoint and end, the second one insists.

What is under way then may still end, as long as patience lasts.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """The run ended early on request, after saving what it has; or as the message says."""

    status = 128 + signal.SIGINT  # of the process, as a shell reports a signal


class GivenUp(Interrupted):
    """As ``Interrupted``, but what was under way took too long: it is not saved, and will be done again."""


class Terminated(Interrupted):
    """As ``Interrupted``, because the machine is taken away (SIGTERM)."""

    status = 128 + signal.SIGTERM


class Interrupt:
    """Context manager that turns SIGINT and SIGTERM into a flag.

    Calling the object tells whether a signal has come. A second Ctrl-C raises KeyboardInterrupt. SIGTERM,
    which a job's manager and its preStop hook may both send, is the same wish however often it comes.

    Example:
        >>> with Interrupt() as interrupted:
        ...     interrupted()
        False
    """

    def __init__(self) -> None:
        self._signalled: int | None = None
        self._typed = 0  # Ctrl-C

    def __call__(self) -> bool:
        return self._signalled is not None

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, Interrupted) and self._signalled == signal.SIGTERM:
            raise Terminated(*error.args) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = self._signalled or number
        if number == signal.SIGINT:
            self._typed += 1
            if self._typed > 1:
                raise KeyboardInterrupt


class Patience:
    """How long work may go on after a signal. What waits for the work calls this again and again.

    It returns False, so that it can stand in for an interrupt that never comes.

    Args:
        interrupt: whether a signal has come.
        seconds: from the call that notices the signal.
        clock: seconds, never decreasing.

    Raises:
        GivenUp: the time is up.

    Example:
        >>> patience = Patience(lambda: True, seconds=15)
        >>> patience()
        False
    """

    def __init__(
        self, interrupt: Callable[[], bool], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interrupt, self._seconds, self._clock = interrupt, seconds, clock
        self._noticed_s: float | None = None

    def __call__(self) -> bool:
        if self._interrupt():
            if self._noticed_s is None:
                self._noticed_s = self._clock()
            elif self._clock() - self._noticed_s >= self._seconds:
                raise GivenUp(f"what was under way is given up, as it did not end within {self._seconds:g} s")
        return False
