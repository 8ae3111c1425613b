"""A ``Meeting`` as torch.distributed's store, and groups that meet there and listen at one address."""

import ipaddress
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from torch.distributed import Store  # type: ignore[attr-defined]

from actors.meeting import called

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
CHOSEN = os.environ.get(GLOO)  # by whoever started this process
ANSWER_S = 30  # of the actor, for what needs no waiting

joined: Store | None = None  # torch keeps no hold of it in Python, where its methods are


class MeetingStore(Store):
    """The same for whoever it is sent to, through Ray.

    Args:
        timeout_s: of a ``get``, and of a ``wait`` that says no other.

    Raises:
        ConnectionError: the meeting is over, or does not answer.
        TimeoutError: a key was not there in time.
    """

    def __init__(self, meeting: ActorHandle, timeout_s: float):
        super().__init__()
        self.meeting, self.timeout_s = meeting, timeout_s
        self.set_timeout(timedelta(seconds=timeout_s))

    def __reduce__(self) -> tuple[Any, ...]:
        return MeetingStore, (self.meeting, self.timeout_s)

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("set", key, _bytes(value))

    def get(self, key: str) -> bytes:
        value: bytes | None = self._ask("get", key, self.timeout_s, wait_s=self.timeout_s)
        if value is None:
            raise TimeoutError(f"wait timeout: {key!r} was not there after {self.timeout_s:g} s")
        return value

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        wait_s = self.timeout_s if timeout is None else timeout.total_seconds()
        if missing := self._ask("wait", list(keys), wait_s, wait_s=wait_s):
            raise TimeoutError(f"wait timeout: {', '.join(missing)} not there after {wait_s:g} s")

    def check(self, keys: Sequence[str]) -> bool:
        return bool(self._ask("check", list(keys)))

    def add(self, key: str, amount: int) -> int:
        return int(self._ask("add", key, amount))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return bytes(self._ask("compare_set", key, _bytes(expected), _bytes(desired)))

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete", key))

    deleteKey = delete_key  # by which name torch's own code asks for it

    def clone(self) -> Store:
        return self

    def _ask(self, method: str, *arguments: Any, wait_s: float = 0) -> Any:
        try:
            return ray.get(getattr(self.meeting, method).remote(*arguments), timeout=wait_s + ANSWER_S)
        except ray.exceptions.RayError as error:  # not as it is: it would pass for the death of who asks
            raise ConnectionError(f"the ranks' meeting is over: {type(error).__name__}") from None


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def new_store(timeout_s: float) -> MeetingStore:
    """One for whoever it is sent to. It ends with this process."""
    return MeetingStore(called(), timeout_s)


def join(backend: str, store: Store, rank: int, world: int, timeout: timedelta) -> None:
    """``init_process_group`` through ``store``, listening at one address."""
    global joined
    joined = store
    store.set(f"address/{rank}", ray.util.get_node_ip_address())
    listen_for([store.get(f"address/{other}").decode() for other in range(world)])
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def listen_for(addresses: Sequence[str]) -> None:
    """The gloo groups that this process makes from now on listen on one address: loopback if all
    ``addresses`` of nodes are the same one, else this node's, by which Ray reaches it.

    NCCL decides once in a process's life, so it always takes this node's. A choice made in the environment
    stands.
    """
    own = ray.util.get_node_ip_address()
    alone = set(addresses) == {own}
    if interface := CHOSEN or interface_of("127.0.0.1" if alone else own):
        os.environ[GLOO] = interface
    else:
        os.environ.pop(GLOO, None)
    if NCCL not in os.environ and (interface := interface_of(own)):
        os.environ[NCCL] = f"={interface}"  # no other whose name begins so


def interface_of(address: str) -> str | None:
    """The network interface that has ``address``; None if there is none."""
    found = {
        entry.address.split("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
    }
    return found.get("127.0.0.1" if ipaddress.ip_address(address).is_loopback else address)
