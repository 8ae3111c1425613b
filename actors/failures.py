"""What is behind an error, and so who has to answer for it: infrastructure, a device, the data, or us."""

import errno
import re
from enum import Enum
from typing import Any

import ray

from d1ray.config.errors import RunFailed

ACTOR_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,  # Ray's memory monitor has killed it
)

# A node's store of objects has no room, and the disk they are spilled to has none either.
STORE_FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)

# What a run survives by doing it again: nothing about the data or the code is wrong.
INFRASTRUCTURE = (
    *ACTOR_LOST,
    ray.exceptions.GetTimeoutError,
    ray.exceptions.NodeDiedError,
    *STORE_FULL,
    ray.exceptions.WorkerCrashedError,
)


class RolloutError(RunFailed):
    """A rollout could not be had: the wait is over its deadline, or its call keeps failing."""


class LearnerLost(RunFailed):
    """The learner's ranks cannot go on: one died or hangs. A new gang can, from the newest checkpoint."""


class StoreFull(RunFailed):
    """A node's object store stayed full, and nothing in it could be spilled.

    Args:
        what: cannot be stored, or fetched, and where.
        waited_s: seconds over which it was tried again.
    """

    def __init__(self, what: str, waited_s: float):
        super().__init__(
            f"{what}: the object store is full, and so is the disk it spills to, for {waited_s:.0f} s "
            f"(cluster.deadline_s); give the node a larger store (`ray start --object-store-memory`) or its "
            f"spill directory (/tmp/ray by default) more disk; `ray memory` and `df` show what they hold"
        )


class ObjectsLost(RuntimeError):
    """What an actor asked for is gone, with the node that held it."""


class NoRoom(RuntimeError):
    """What an actor asked for has no room in its node's object store. On that node Ray keeps it so: only a
    copy, as another object, can be had later."""


def fetched(refs: Any, timeout_s: float, what: str) -> Any:
    """``ray.get``, which on failure says what it was to get, and why it could not.

    Raises:
        ObjectsLost, NoRoom
        ray.exceptions.GetTimeoutError: it took longer than ``timeout_s``.
    """
    try:
        return ray.get(refs, timeout=timeout_s)
    except ray.exceptions.ObjectLostError as error:
        raise ObjectsLost(f"{what} are lost: {one_line(error)}") from error
    except STORE_FULL as error:
        raise NoRoom(f"there is no room for {what}: {one_line(error)}") from error


class Kind(Enum):
    """What a call's try may end with. An error of ours (a bug) looks like one of the group, but happens to
    every group: the run ends when all of a step have failed."""

    PREEMPTED = "its node was taken back"
    LOST = "its actor died or did not answer"  # infrastructure
    NO_ROOM = "an object store was full"
    DEVICE = "its device failed"  # whose process has to start again: CUDA errors are sticky
    MEMORY = "there was too little memory"
    SYSTEM = "its machine failed it"  # storage, processes, file handles
    GROUP = "it failed by itself"


DEVICE = re.compile(
    r"CUDA error|CUDA driver error|HIP error|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|CUSOLVER_STATUS|"
    r"device-side assert|uncorrectable ECC|NVML",
    re.IGNORECASE,
)
MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
# What torch.distributed says where another process is gone or late: not the first error, but its echo.
COLLECTIVE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out waiting|wait timeout|socket timeout|"
    r"store->|TCPStore",
    re.IGNORECASE,
)


def kind_of(error: BaseException) -> Kind:
    """Which kind an error is that a call has ended with, or the one behind it in the actor's process."""
    behind = _behind(error)
    if isinstance(behind, (NoRoom, StoreFull, *STORE_FULL)):
        return Kind.NO_ROOM
    if getattr(behind, "preempted", False) is True:
        return Kind.PREEMPTED
    if isinstance(behind, MemoryError | ray.exceptions.OutOfMemoryError):
        return Kind.MEMORY
    if isinstance(behind, INFRASTRUCTURE):
        return Kind.LOST
    if isinstance(behind, OSError):
        return Kind.SYSTEM
    if isinstance(behind, RunFailed):  # which says what it is
        return Kind.GROUP
    names = {one.__name__ for one in type(behind).__mro__}
    if isinstance(behind, RuntimeError):
        said = str(behind)
        if "OutOfMemoryError" in names or MEMORY.search(said):
            return Kind.MEMORY
        if "AcceleratorError" in names or DEVICE.search(said):
            return Kind.DEVICE
    return Kind.GROUP


def is_echo(error: BaseException) -> bool:
    """Whether an error only says that another process of a collective is gone or late."""
    behind = _behind(error)
    distributed = any(one.__name__ == "DistError" for one in type(behind).__mro__)
    if distributed or isinstance(behind, ConnectionError | TimeoutError):  # these of the ranks' meeting
        return True
    return type(behind) is RuntimeError and bool(COLLECTIVE.search(str(behind)))


def is_disk(error: BaseException) -> bool:
    """Whether an error is a file system's: full, read-only, over its quota, not to be written."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
    behind = _behind(error)
    return isinstance(behind, OSError) and behind.errno in full


def _behind(error: BaseException) -> BaseException:
    """What was raised in the actor's process."""
    if isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        return error.cause
    return error


def one_line(error: BaseException) -> str:
    """What an error says: of another process's traceback the last line, of Ray's own errors the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0].strip()
