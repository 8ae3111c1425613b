"""A checking process: it reads completions from its owner, ``d1ray.tasks.checker``, and answers with scores.

Its standard input is a socket. The owner, who is trusted, sends pickles: first the task and its limits, then
lists of pairs. This process, which is not, answers in lines of JSON: first what could not be shut, then the
scores, one by one.
"""

import ctypes
import json
import os
import pickle
import signal
import socket
import sys
from types import FrameType

from d1ray.tasks.confine import confine
from d1ray.tasks.task import Task
from d1ray.tasks.verdict import Pair, failed, judged_in_memory, to_line

PR_SET_PDEATHSIG = 1


class _OutOfTime(BaseException):
    """Raised by the timer within a check; no ``except Exception`` on the way may swallow it."""


def main() -> None:
    """Judges until the owner hangs up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also amid a check
    owner = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with owner, owner.makefile("rb") as requests:
        task, timeout_s, memory_gb, confined = pickle.load(requests)
        _limit_memory(memory_gb)
        signal.signal(signal.SIGVTALRM, _out_of_time)
        task.prepare()
        owner.sendall(json.dumps(confine() if confined else "").encode() + b"\n")
        while True:
            try:
                pairs = pickle.load(requests)
            except EOFError:
                return
            for pair in pairs:
                owner.sendall(_line(task, pair, timeout_s))


def _limit_memory(memory_gb: float) -> None:
    if sys.platform == "linux":
        import resource

        most = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise _OutOfTime


def _line(task: Task, pair: Pair, timeout_s: float) -> bytes:
    signal.setitimer(signal.ITIMER_VIRTUAL, timeout_s)
    try:
        score = judged_in_memory(task, pair)
    except _OutOfTime:
        score = failed(task, "timeout")
    except MemoryError:
        os._exit(1)  # a fresh process tells whether this completion alone takes as much
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return to_line(score)


if __name__ == "__main__":
    main()
