"""Which errors are the infrastructure's and which the data's: they have different budgets."""

import ray

ACTOR_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.ObjectLostError,
)


# What a run survives by doing it again: nothing about the data or the code is wrong.
INFRASTRUCTURE = (
    *ACTOR_LOST,
    ray.exceptions.GetTimeoutError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectStoreFullError,
    ray.exceptions.OutOfDiskError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
)


class RolloutError(RuntimeError):
    """A rollout could not be had: the wait is over its deadline, or its call keeps failing."""


class LearnerLost(RuntimeError):
    """The learner's ranks cannot go on: one died or hangs. A new gang can, from the newest checkpoint."""


def is_lost(error: ray.exceptions.RayTaskError) -> bool:
    """Whether a call failed because of what it depended on: a process or an object that was lost."""
    return isinstance(error.cause, INFRASTRUCTURE)
