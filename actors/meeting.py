"""Meeting: keys and values in an actor, by which processes that share tensors find each other.

torch.distributed's own store listens at a port and believes whoever reaches it. This one is reached as every
actor is, through Ray and its token. ``actors.meeting_store`` makes a torch store of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Meeting:
    """What has been told so far. It does without torch, so that its process is a small one."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.told: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def set(self, key: str, value: bytes) -> None:
        self.values[key] = value
        self.told[key].set()

    async def get(self, key: str, timeout_s: float) -> bytes | None:
        """None if nobody told it within ``timeout_s``."""
        return None if await self.wait([key], timeout_s) else self.values[key]

    async def wait(self, keys: Sequence[str], timeout_s: float) -> list[str]:
        """The keys that nobody told within ``timeout_s``; none, as soon as all are there."""
        waits = [self.told[key].wait() for key in keys]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waits), timeout_s)
        return [key for key in keys if key not in self.values]

    async def check(self, keys: Sequence[str]) -> bool:
        """Whether all are there."""
        return all(key in self.values for key in keys)

    async def add(self, key: str, amount: int) -> int:
        """The sum of all that was added to ``key``, which begins at 0."""
        total = int(self.values.get(key, b"0")) + amount
        await self.set(key, str(total).encode())
        return total

    async def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Sets ``key`` if it is as ``expected``, or if it is not there and nothing is expected; returns what
        it is then."""
        found = self.values.get(key)
        if found == expected or (found is None and not expected):
            await self.set(key, desired)
        return self.values.get(key, expected)

    async def delete(self, key: str) -> bool:
        """Whether it was there."""
        self.told.pop(key, None)
        return self.values.pop(key, None) is not None


def called() -> ActorHandle:
    """A new one on this node. It ends with the process that called it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    handle: ActorHandle = ray.remote(num_cpus=0, scheduling_strategy=here)(Meeting).remote()
    return handle
