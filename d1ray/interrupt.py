"""Ctrl-C as a wish: the first signal asks the run to checkpoint and end, the second one insists."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """The run ended early on request, after saving what it has."""

    status = 128 + signal.SIGINT  # of the process, as a shell reports a signal


class Terminated(Interrupted):
    """As ``Interrupted``, because the machine is taken away (SIGTERM)."""

    status = 128 + signal.SIGTERM


class Interrupt:
    """Context manager that turns SIGINT and SIGTERM into a flag.

    Calling the object tells whether a signal has come. A second signal raises KeyboardInterrupt.

    Example:
        >>> with Interrupt() as interrupted:
        ...     interrupted()
        False
    """

    def __init__(self) -> None:
        self._signalled: int | None = None

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
            raise Terminated from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled is not None:
            raise KeyboardInterrupt
        self._signalled = number
