"""Checks of completions in processes that can be killed (``d1ray.tasks.checking``).

A check may hang, crash its process or ask for all memory: model output decides what it does. So checks run
in processes of their own, which answer completion by completion. One that gets no answer is checked again in
a fresh process, and scores nothing where it gets none there.

A check is limited by the CPU time it uses, which is the same on a busy machine; wall-clock time only ends
what does not even answer the signal (``KILL_AFTER`` times the limit).

What a process answers is read as data of a known shape, and no more than ``MOST`` bytes of it: one that a
completion has taken over would say what it likes.
"""

import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from queue import LifoQueue

from d1ray.tasks.task import Failure, Score, Task
from d1ray.tasks.verdict import Pair, failed, from_line

CHUNK = 32  # completions a request: enough that its cost hardly counts
RECYCLE = (
    20_000  # checks of a process before a fresh one takes its place: what libraries keep does not add up
)
KILL_AFTER = 5
START_S = 300.0  # longest wait for a process to prepare
STARTS = 3  # tries
MOST = 1 << 20  # bytes of an answer
KEPT = re.compile(  # environment variables that a check may see
    r"PATH|HOME|PWD|TZ|TMPDIR|LANG|LC_\w+|(LD|DYLD)_LIBRARY_PATH|VIRTUAL_ENV|SYSTEMROOT|OPENBLAS_\w+|"
    r"PYTHON(HOME|HASHSEED|DONTWRITEBYTECODE|PYCACHEPREFIX)"
)
ONE_THREAD = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

logger = logging.getLogger(__name__)


class Checker:
    """Processes that judge completions for one task; use as a context manager.

    Args:
        task: travels to the processes by pickle.
        timeout_s: CPU seconds of one check.
        memory_gb: private memory of a process (Linux only; elsewhere unlimited).
        processes: how many check at the same time. They start when they are needed.

    Example:
        >>> with Checker(load_task("countdown")) as checker:  # doctest: +SKIP
        ...     checker.check([(example, "<answer>1+2</answer>")])[0].reward
    """

    def __init__(self, task: Task, timeout_s: float = 3.0, memory_gb: float = 2.0, processes: int = 1):
        self.task, self.timeout_s, self.memory_gb = task, timeout_s, memory_gb
        # Of as many threads as processes, which last as long: a process ends with the thread that began it.
        self._threads = ThreadPoolExecutor(processes, "checker")
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(processes):  # places where one may start
            self._idle.put(None)
        self._running: set[_Process] = set()
        self._closed = False

    def __enter__(self) -> "Checker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; waits for them."""
        self._closed = True
        for process in [*self._running]:
            process.end()
        self._threads.shutdown(cancel_futures=True)

    def check(self, pairs: Sequence[Pair]) -> list[Score]:
        """The scores of completions, in their order. Never raises for what a completion holds.

        Raises ``RuntimeError`` where no process starts, e.g. because the task's ``prepare`` raises.
        """
        chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        return [score for scores in self._threads.map(self._check, chunks) for score in scores]

    def unconfined(self) -> str:
        """What a process could still do here that it should not, as a sentence; "" where it is confined."""
        [said] = self._threads.map(self._said, [None])
        return said

    def _check(self, chunk: Sequence[Pair]) -> list[Score]:
        scores: list[Score] = []
        while rest := chunk[len(scores) :]:
            with self._lent() as process:
                before, fresh = len(scores), not process.answered
                failure = process.judge(rest, scores)
                if failure and fresh and len(scores) == before:
                    scores.append(failed(self.task, failure))
        return scores

    def _said(self, _: None) -> str:
        with self._lent() as process:
            return process.unconfined

    @contextmanager
    def _lent(self) -> Iterator["_Process"]:
        """A process for one thread: one that is there, or a new one in its place."""
        process = self._idle.get()
        try:
            process = process or self._start()
            yield process
        finally:
            if process and (process.ended or process.answered >= RECYCLE):
                process.end()
                self._running.discard(process)
                process = None
            self._idle.put(process)

    def _start(self) -> "_Process":
        for _ in range(STARTS):
            process = _Process()
            self._running.add(process)
            if self._closed:  # maybe before this one could be seen
                process.end()
                raise RuntimeError("the checker is closed")
            if process.prepare(self.task, self.timeout_s, self.memory_gb):
                _say(process.unconfined)
                return process
            self._running.discard(process)
        raise RuntimeError(
            f"no process that checks {self.task.name} starts: the last of {STARTS} ended with status "
            f"{process.status}; what it wrote to standard error says why"
        )


class _Process:
    """The owner's side of a checking process, whose answers may be wrong, late or endless."""

    def __init__(self) -> None:
        self.answered, self.ended, self.unconfined = 0, False, ""
        self._unread = bytearray()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "d1ray.tasks.checking"],
                stdin=theirs.fileno(),
                env=_environment(),
                start_new_session=True,  # Ctrl-C is the owner's
            )

    @property
    def status(self) -> int | None:
        """The exit status, once it has ended."""
        return self._popen.returncode

    def prepare(self, task: Task, timeout_s: float, memory_gb: float) -> bool:
        """Hands over the task; False where the process ends over it."""
        self._within_s = KILL_AFTER * timeout_s
        try:
            self._send((task, timeout_s, memory_gb, task.confined), START_S)
            self.unconfined = str(json.loads(self._line(START_S)))
        except (OSError, ValueError):
            self.end(grace_s=1)
        return not self.ended

    def judge(self, pairs: Sequence[Pair], scores: list[Score]) -> Failure:
        """Appends a score for each of ``pairs``, up to the first that gets none; why it does not."""
        readable = [(example, text.encode("utf-8", "replace").decode()) for example, text in pairs]
        try:
            self._send(readable, self._within_s)
            for _ in pairs:
                scores.append(from_line(self._line(self._within_s)))
                self.answered += 1
        except TimeoutError:
            self.end()
            return "timeout"
        except (OSError, ValueError):  # it hung up, or answers with something else
            self.end()
            return "crash"
        return ""

    def end(self, grace_s: float = 0) -> None:
        """Ends the process, at once or when it has had ``grace_s`` to end by itself; waits for it."""
        self.ended = True
        try:
            self._popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._channel.close()

    def _send(self, request: object, within_s: float) -> None:
        self._channel.settimeout(within_s)
        self._channel.sendall(pickle.dumps(request))

    def _line(self, within_s: float) -> bytes:
        deadline = time.monotonic() + within_s
        while b"\n" not in self._unread:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            part = self._channel.recv(1 << 16)
            self._unread += part
            if not part or len(self._unread) > MOST:
                raise ConnectionError("it hung up, or does not stop")
        line, _, self._unread = self._unread.partition(b"\n")
        return bytes(line)


def _environment() -> dict[str, str]:
    """A checking process's: nothing but what ``KEPT`` names, and where to import from."""
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return kept | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(sys.path)}


@lru_cache
def _say(unconfined: str) -> None:
    if unconfined:
        logger.warning("checks of completions are not fully confined: %s (docs/security.md)", unconfined)
