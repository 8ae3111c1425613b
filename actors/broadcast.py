"""Broadcast: whole weights from the first learner rank to all generators that wait for work, at once.

It spares them the object store, where the weights lie as well: a generator that was busy, that starts
later or whose part of a broadcast failed fetches them from there. So a failure costs time, never a run.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from actors.failures import ACTOR_LOST
from actors.meeting_store import listen_for
from actors.policy import Weights
from actors.pool import Pool
from d1ray.config.cluster import ClusterConfig

LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Circle:
    """Processes that take part in broadcasts. The first one sends.

    Attributes:
        name: unlike that of any other.
        store: where they meet.
        size: how many there are.
        fresh: it has yet to meet.
        nccl: each has a GPU of its own; else the tensors travel by way of the CPU.
        timeout_s: of every single wait.
    """

    name: str
    store: Store
    size: int
    fresh: bool
    nccl: bool
    timeout_s: float

    @property
    def device(self) -> str:
        return "cuda" if self.nccl else "cpu"


class Member:
    """A process's place in at most one circle. Whatever fails in one ends its membership."""

    def __init__(self) -> None:
        self.circle = ""
        self.group: Any = None
        self.store: Store | None = None  # of the group, which keeps no hold of it in Python
        self.failed: dict[str, str] = {}  # what ended a membership, by the circle's name

    def send(self, circle: Circle, tensor: Tensor) -> None:
        """Sends a tensor; does nothing once something has failed in this circle."""
        if circle.name in self.failed:
            return
        try:
            self._join(circle, 0)
            self._broadcast(circle, tensor.to(circle.device))
        except Exception as error:
            self._leave(circle, error)

    def receive(self, circle: Circle, rank: int, tensors: Sequence[Tensor]) -> None:
        """Receives ``tensors``, in the order in which they are sent."""
        try:
            self._join(circle, rank)
            for tensor in tensors:
                arriving = tensor.to(circle.device)  # itself, where that is its device
                self._broadcast(circle, arriving)
                tensor.copy_(arriving)
        except Exception as error:
            self._leave(circle, error)
            raise

    def _join(self, circle: Circle, rank: int) -> None:
        if circle.name == self.circle:
            return
        self.circle, self.group = "", None
        if not circle.fresh:
            raise ConnectionError(
                f"this process did not meet circle {circle.name}: it is another than before"
            )
        wait = timedelta(seconds=circle.timeout_s)
        store = PrefixStore(f"broadcast/{circle.name}", circle.store)
        members = [f"member/{other}" for other in range(circle.size)]
        store.set(members[rank], ray.util.get_node_ip_address())
        store.wait(members, wait)  # NCCL itself would wait for a missing one without end
        listen_for([store.get(member).decode() for member in members])
        self.group = _process_group(store, rank, circle, wait)
        self.circle, self.store = circle.name, circle.store

    def _broadcast(self, circle: Circle, tensor: Tensor) -> None:
        """In place, at the receivers."""
        self.group.broadcast([tensor]).wait(timedelta(seconds=circle.timeout_s))

    def _leave(self, circle: Circle, error: Exception) -> None:
        if self.group is not None and circle.nccl:
            self.group.abort()  # or NCCL would go on writing when somebody turns up late
        self.circle, self.group = "", None
        self.failed = {circle.name: f"{type(error).__name__}: {error}"}


def _process_group(store: Store, rank: int, circle: Circle, wait: timedelta) -> Any:
    """A group beside torch.distributed's default one, which the learner's ranks have among themselves."""
    from torch.distributed import distributed_c10d as c10d

    if not circle.nccl:
        return c10d.ProcessGroupGloo(store, rank, circle.size, timeout=wait)
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a failure raises; else NCCL's watchdog ends the process
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = wait
    return c10d.ProcessGroupNCCL(store, rank, circle.size, options)


class Broadcasts:
    """The driver's side: who takes part, and what came of it.

    A circle is kept while it has the same members; a generator that has started again is another one.

    Args:
        incarnation: of the learner.
        store: where its ranks and the generators meet; None without broadcasts.
    """

    def __init__(self, c: ClusterConfig, incarnation: int, store: Store | None):
        self.asked, self.incarnation, self.store = c.broadcast, incarnation, store
        self.nccl = not c.colocated and min(c.generator_gpus, c.learner_gpus) >= 1
        self.timeout_s = min(LONGEST_WAIT_S, c.deadline_s / 5)  # a rank's call may take several waits
        self.members: list[tuple[int, int]] = []
        self.circles = self.failures = 0
        self.generators: Pool  # of the broadcast under way
        self.receiving: dict[ray.ObjectRef, int] = {}

    def start(self, generators: Pool | None, weights: Weights) -> Circle | None:
        """Has all generators that are up and idle receive ``weights``; None if there are none."""
        if not self.asked or self.store is None or generators is None:
            return None
        self.generators = generators
        members = [(index, generators.starts[index]) for index in generators.idle()]
        fresh, self.members = members != self.members, members
        self.circles += fresh
        if not members:
            return None
        name = f"{self.incarnation}.{self.circles}"
        circle = Circle(name, self.store, len(members) + 1, fresh, self.nccl, self.timeout_s)
        for rank, (index, _) in enumerate(members, start=1):
            ref = generators.call(index, "receive", circle, rank, self.incarnation, weights)[1]
            self.receiving[ref] = index
        return circle

    def finish(self, failure: str, note: Callable[[str], None]) -> None:
        """Waits for the receivers, and notes what went wrong: with them, or the sender's ``failure``."""
        refs, self.receiving = self.receiving, {}
        ended, late = ray.wait(list(refs), num_returns=len(refs), timeout=self.timeout_s, fetch_local=False)
        wrong = [failure] if failure else []
        wrong += [f"generator {refs[ref]} does not answer" for ref in late]
        for ref in ended:
            try:
                ray.get(ref)
            except ACTOR_LOST:
                self.generators.lost(refs[ref])
                wrong.append(f"generator {refs[ref]} died")
            except ray.exceptions.RayTaskError as error:
                wrong.append(f"generator {refs[ref]}: {str(error).strip().splitlines()[-1]}")
        if wrong:
            self.failures += 1
            self.members = []
            note(f"a broadcast of the weights failed ({'; '.join(wrong)}); they are fetched instead")
