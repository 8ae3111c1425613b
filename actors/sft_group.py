"""How Ray Train's workers become a process group: they meet in an actor, as the learner's ranks do.

Ray Train would have them meet at a port of the first worker's, which is open on every interface.
"""

import os
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from actors.meeting_store import join, new_store

LEAVE_S = 30  # for workers that end, of which one may hang


class MeetingBackend(Backend):
    """Starts and ends the group, from Ray Train's controller. A gang of workers has a meeting of its own."""

    share_cuda_visible_devices = True  # as Ray Train's own for torch

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        world = len(worker_group)
        self.store = new_store(backend_config.timeout_s) if world > 1 else None
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, self.store, rank, world, backend_config.timeout_s
                )
                for rank in range(world)
            ],
            timeout=backend_config.timeout_s + LEAVE_S,
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        self.store = None
        if len(worker_group) > 1:  # those that are left must not wait for one that is gone
            ray.wait(worker_group.execute_async(dist.destroy_process_group), timeout=LEAVE_S)


class MeetingTorchConfig(TorchConfig):
    """Ray Train's settings for torch, with this group. ``backend`` must be said."""

    @property
    def backend_cls(self) -> type[Backend]:
        return MeetingBackend


def _join(backend: str, store: Store | None, rank: int, world: int, timeout_s: float) -> None:
    """One worker's part; the environment is that which Ray Train makes."""
    from ray.train import get_context

    context = get_context()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    join(backend, store or HashStore(), rank, world, timedelta(seconds=timeout_s))
