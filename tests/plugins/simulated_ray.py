"""Ray as its driver sees it, simulated in one thread with a clock of its own: actors that die, hang, slow
down or are cut off, objects that are lost, stores that are full. A seed decides everything.

It stands in for the modules ``ray`` and ``time`` in the driver's logic. Exceptions are Ray's own.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ray import exceptions


class Stuck(AssertionError):
    """Somebody waits without a bound, or for longer than anything may take."""


class Ref:
    """Of an object: pending until it is there or an error is; ``node`` holds it."""

    def __init__(self) -> None:
        self.ready, self.value, self.error, self.node = False, None, None, -1


def task_error(cause: Exception) -> exceptions.RayTaskError:
    """What ``ray.get`` raises when an actor's method has raised ``cause``."""
    said = f"Traceback\n{type(cause).__name__}: {cause}"
    return exceptions.RayTaskError("method", said, cause, "simulated", 1, "127.0.0.1")


def died(preempted: bool = False, starting: bool = False) -> exceptions.RayActorError:
    said = "The actor died." if not starting else "The actor died.\nOSError: no such mount"
    return exceptions.RayActorError(error_msg=said, actor_init_failed=starting, preempted=preempted)


@dataclass(eq=False)
class Task:
    method: str
    arguments: tuple[Any, ...]
    refs: list[Ref]
    over: bool = False


@dataclass(eq=False)
class Process:
    """An actor's, one after the other: what a restart replaces."""

    up: bool = False
    queue: list[Task] = field(default_factory=list)
    working: bool = False
    hangs: bool = False
    sticky: bool = False  # every call fails with an error of the device, until the process is another one
    dead: bool = False


class SimulatedRay:
    """The clock, the events to come, and what the driver calls of Ray.

    Args:
        world: what actors do, and what happens to them.
        longest_s: of simulated time for a run, or it is stuck.
    """

    def __init__(self, random: Random, longest_s: float):
        self.random, self.longest_s = random, longest_s
        self.now = 0.0
        self.exceptions = exceptions
        self.ObjectRef = Ref
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.actors: list[Actor] = []
        self.before_waiting: Callable[[], None] = lambda: None

    # as the module time

    def monotonic(self) -> float:
        return self.now

    time = perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.before_waiting()
        self._run(lambda: False, seconds)

    # as the module ray

    def wait(
        self,
        refs: Sequence[Ref],
        num_returns: int = 1,
        timeout: float | None = None,
        fetch_local: bool = True,
    ) -> tuple[list[Ref], list[Ref]]:
        self.before_waiting()
        if timeout is None:
            raise Stuck("a wait without a bound")
        assert len(set(refs)) == len(refs), "ray.wait refuses duplicates"
        self._run(lambda: sum(ref.ready for ref in refs) >= num_returns, timeout)
        ready = [ref for ref in refs if ref.ready][:num_returns]
        return ready, [ref for ref in refs if ref not in set(ready)]

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        if timeout is None and not ref.ready:
            raise Stuck("a get without a bound")
        timeout = timeout or 0.0
        self._run(lambda: ref.ready, timeout)
        if not ref.ready:
            raise exceptions.GetTimeoutError(f"not there after {timeout} s")
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor: "Actor", no_restart: bool = True) -> None:
        actor.die(restart=not no_restart)

    # for what is simulated

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def end(self, task: Task, value: Any = None, error: Exception | None = None, node: int = -1) -> None:
        """The references of a task get their values (a large one, and small metadata) or an error. What has
        ended once stays so: Ray drops a second answer."""
        if task.over:
            return
        task.over = True
        for ref, part in zip(task.refs, value if error is None else (None, None), strict=False):
            ref.ready, ref.value, ref.error, ref.node = True, part, error, node

    def _run(self, reached: Callable[[], bool], seconds: float) -> None:
        """Lets events happen until it is so, or the time is over."""
        until = self.now + seconds
        while not reached() and self._events and self._events[0][0] <= until:
            at, _, do = heapq.heappop(self._events)
            self.now = max(self.now, at)
            if self.now > self.longest_s:
                raise Stuck(f"not over after {self.longest_s:g} simulated seconds")
            do()
        if not reached():
            self.now = max(self.now, until) + 1e-6
        if self.now > self.longest_s:
            raise Stuck(f"not over after {self.longest_s:g} simulated seconds")


class Actor:
    """An actor's handle, and the process behind it.

    Args:
        starting: takes the handle and says how long a process takes to start, or raises what its constructor
            does.
        working: takes handle, method and arguments; says how long that takes, and the value or error it ends
            with.
    """

    def __init__(self, ray: SimulatedRay, kind: str, place: int, starting: Any, working: Any):
        self.ray, self.kind, self.place, self.node = ray, kind, place, -1
        self._starting, self._working = starting, working
        self.gone = False  # for good
        self.failed_to_start = False
        self.cut_off_until = 0.0
        self.asking: list[Task] = []
        self.process = Process()
        ray.actors.append(self)
        self._start()

    def __getattr__(self, method: str) -> "Method":
        if method.startswith("__") and method != "__ray_ready__":
            raise AttributeError(method)
        return Method(self, method)

    def _start(self) -> None:
        process = self.process = Process()

        def up() -> None:
            if process.dead or self.gone:
                return
            try:
                self._starting(self)
            except Exception:
                self.gone = self.failed_to_start = True
                self._fail_all(process)
                return
            process.up = True
            for task in self.asking:
                self.ray.end(task, (True,))
            self.asking.clear()
            self._next(process)

        self.ray.after(self.ray.random.uniform(0.5, 4.0), up)

    def die(self, restart: bool = True, preempted: bool = False) -> None:
        if self.gone:
            return
        process, self.gone = self.process, not restart
        process.dead = True
        self._fail_all(process, preempted)
        if restart:
            self._start()

    def _fail_all(self, process: Process, preempted: bool = False) -> None:
        tasks, process.queue = process.queue, []
        asked, self.asking = (self.asking, []) if self.gone else ([], self.asking)
        error = died(preempted, self.failed_to_start)
        for task in (*tasks, *asked):
            self.ray.after(self.ray.random.uniform(0, 0.5), lambda task=task: self.ray.end(task, error=error))

    def called(self, method: str, arguments: tuple[Any, ...], returns: int) -> list[Ref]:
        task = Task(method, arguments, [Ref() for _ in range(returns)])
        if method == "__ray_ready__":
            if self.gone:
                self.asking.append(task)
                self._fail_all(Process())
            elif self.process.up:
                self.ray.end(task, (True,))
            else:
                self.asking.append(task)
        elif self.gone or not self.process.up:
            self.ray.after(0.1, lambda: self.ray.end(task, error=died()))
        else:
            self.process.queue.append(task)
            self._next(self.process)
        return task.refs

    def _next(self, process: Process) -> None:
        """Begins the first task whose arguments are there: in order, but those that wait hold up nobody."""
        if process.working or process.hangs or process.dead or not process.up:
            return
        able = [t for t in process.queue if all(a.ready for a in t.arguments if isinstance(a, Ref))]
        if not able:
            if process.queue:
                self.ray.after(0.05, lambda: self._next(process))
            return
        task, process.working = able[0], True
        failed = next((a.error for a in task.arguments if isinstance(a, Ref) and a.error), None)
        seconds, value, error = (0.0, None, failed) if failed else self._working(self, task)

        def over() -> None:
            if process.dead or process.hangs:
                return
            wait_s = self.cut_off_until - self.ray.now
            if wait_s > 0:  # the answer arrives when the network is back, if it is still wanted
                self.ray.after(wait_s, over)
                return
            process.working = False
            if task in process.queue:
                process.queue.remove(task)
            self.ray.end(task, value, error, self.node)
            self._next(process)

        self.ray.after(seconds, over)


class Method:
    def __init__(self, actor: Actor, name: str, returns: int = 1):
        self.actor, self.name, self.returns = actor, name, returns

    def options(self, num_returns: int) -> "Method":
        return Method(self.actor, self.name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        refs = self.actor.called(self.name, arguments, self.returns)
        return refs if self.returns > 1 else refs[0]
