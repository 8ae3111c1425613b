"""Which errors are the infrastructure's and which the data's: they have different budgets."""

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


def is_lost(error: ray.exceptions.RayTaskError) -> bool:
    """Whether a call failed because of what it depended on: a process or an object that was lost."""
    return isinstance(error.cause, INFRASTRUCTURE)


def one_line(error: BaseException) -> str:
    """What an error says: of another process's traceback the last line, of Ray's own errors the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0].strip()
