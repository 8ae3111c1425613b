"""Checks of completions in subprocesses that can be killed (pebble).

A check may hang, crash its process or ask for all memory: model output decides what it does. So checks run
in processes of their own, in chunks for speed. A chunk that does not come back is checked again, one
completion at a time in a fresh process, and only the culprit scores nothing.

A check is limited by the CPU time it uses, which is the same on a busy machine; wall-clock time only ends
what does not even answer the signal (``KILL_AFTER`` times the limit).
"""

import ctypes
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, ClassVar

from pebble import ProcessExpired, ProcessPool

from d1ray.tasks.task import Example, Failure, Score, Task

CHUNK = 32  # completions a call: enough that its cost hardly counts
KILL_AFTER = 5
MAX_PARSED = 500  # characters of a parsed answer that are kept
PR_SET_PDEATHSIG = 1
KEPT = re.compile(  # environment variables that a check may see
    r"PATH|HOME|PWD|TZ|TMPDIR|LANG|LC_\w+|(LD|DYLD)_LIBRARY_PATH|VIRTUAL_ENV|SYSTEMROOT|OPENBLAS_\w+|"
    r"PYTHON(PATH|HOME|HASHSEED|DONTWRITEBYTECODE|PYCACHEPREFIX)|\w+_NUM_THREADS"
)

Pair = tuple[Example, str]


class Checker:
    """Processes that judge completions for one task; use as a context manager.

    Args:
        task: travels to the processes by pickle.
        timeout_s: CPU seconds of one check.
        memory_gb: private memory of a process (Linux only; elsewhere unlimited).
        processes: how many check at the same time.

    Example:
        >>> with Checker(load_task("countdown")) as checker:  # doctest: +SKIP
        ...     checker.check([(example, "<answer>1+2</answer>")])[0].reward
    """

    def __init__(self, task: Task, timeout_s: float = 3.0, memory_gb: float = 2.0, processes: int = 1):
        self.task, self.timeout_s = task, timeout_s
        self._pool = ProcessPool(
            max_workers=processes,
            initializer=_prepare,
            initargs=(task, timeout_s, memory_gb),
            context=_Spawn(),  # the owner may have threads, which fork breaks
        )

    def __enter__(self) -> "Checker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; waits for them."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def check(self, pairs: Sequence[Pair]) -> list[Score]:
        """The scores of completions, in their order. Never raises for what a completion holds."""
        chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        futures = [self._schedule(chunk) for chunk in chunks]
        scores: list[Score] = []
        for chunk, future in zip(chunks, futures, strict=True):
            result = _result(future)
            scores += result if isinstance(result, list) else self._one_by_one(chunk, result)
        return scores

    def _one_by_one(self, chunk: Sequence[Pair], failure: Failure) -> list[Score]:
        if len(chunk) == 1:
            return [failed(self.task, failure)]
        return [score for pair in chunk for score in self.check([pair])]

    def _schedule(self, chunk: Sequence[Pair]) -> Any:
        readable = [
            (example, completion.encode("utf-8", "replace").decode()) for example, completion in chunk
        ]
        return self._pool.schedule(_judge_all, args=(readable,), timeout=KILL_AFTER * self.timeout_s)


def failed(task: Task, failure: Failure) -> Score:
    """The score of a completion whose check did not end."""
    return Score(dict.fromkeys(task.rewards, 0.0), False, 0.0, False, None, failure)


def judged(task: Task, pair: Pair) -> Score:
    """The score of one completion, made safe to store; an error in the task's ``judge`` counts as a crash."""
    try:
        score = task.score(*pair)
        if not all(math.isfinite(v) for v in (*score.components.values(), score.partial)):
            return failed(task, "crash")
        parsed = score.parsed
        if parsed is not None:
            parsed = parsed[:MAX_PARSED].encode("utf-8", "replace").decode()
        return replace(score, parsed=parsed)
    except _OutOfTime:
        return failed(task, "timeout")
    except Exception:  # whatever a task's author or a library did not foresee
        return failed(task, "crash")


class _OutOfTime(BaseException):
    """Raised by the timer within a check; no ``except Exception`` on the way may swallow it."""


class _Process(SpawnProcess):
    """A spawned process that does not run the owner's main module again (Ray's, or d1ray's with torch), and
    never has the owner's environment but for what ``KEPT`` names: tokens and keys are not for completions."""

    starting: ClassVar = threading.Lock()

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _Process.starting:  # a child inherits what this process has at the moment
            main = sys.modules["__main__"]
            hidden = {name: value for name, value in os.environ.items() if not KEPT.fullmatch(name)}
            sys.modules["__main__"] = ModuleType("__main__")
            for name in hidden:
                del os.environ[name]
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                os.environ.update(hidden)
                sys.modules["__main__"] = main


class _Spawn(SpawnContext):
    Process = _Process


_task: Task
_timeout_s: float


def _prepare(task: Task, timeout_s: float, memory_gb: float) -> None:
    global _task, _timeout_s
    _task, _timeout_s = task, timeout_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's
    signal.signal(signal.SIGVTALRM, _out_of_time)
    if sys.platform == "linux":
        import resource

        most = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing is left when the owner is killed
    task.prepare()


def _out_of_time(*_: object) -> None:
    raise _OutOfTime


def _judge_all(pairs: Sequence[Pair]) -> list[Score]:
    scores = []
    for pair in pairs:
        signal.setitimer(signal.ITIMER_VIRTUAL, _timeout_s)
        try:
            score = judged(_task, pair)
        except _OutOfTime:  # between the check's end and the timer's
            score = failed(_task, "timeout")
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        scores.append(score)
    return scores


def _result(future: Any) -> list[Score] | Failure:
    try:
        scores: list[Score] = future.result()
        return scores
    except FutureTimeout:
        return "timeout"
    except (ProcessExpired, Exception):
        return "crash"
