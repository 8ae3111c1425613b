"""Which error of a gang's ranks came first, and what it means: the others only say that they lost one."""

from collections.abc import Sequence
from typing import NoReturn

import ray

from actors.failures import (
    ACTOR_LOST,
    STORE_FULL,
    Kind,
    LearnerLost,
    NoRoom,
    ObjectsLost,
    is_disk,
    is_echo,
    kind_of,
    one_line,
)
from d1ray.config.errors import RunFailed

DEATH_NOTICE_S = 15  # after a rank's error, to learn whether another's death was its cause


def check(ref: ray.ObjectRef, refs: Sequence[ray.ObjectRef], method: str, deadline_s: float) -> None:
    """Raises what ``ref``, a rank's answer to ``method``, ended with, if that is an error.

    Args:
        refs: the answers of all ranks, in their order.

    Raises:
        LearnerLost: a new gang can do it.
        RunFailed: a rank's disk is full, or its memory.
    """
    try:
        ray.get(ref, timeout=deadline_s)
    except ray.exceptions.RayTaskError as error:
        _explain(error, ref, refs, method)
    except ray.exceptions.RayError as error:
        raise LearnerLost(f"learner rank {refs.index(ref)} died in {method!r}: {one_line(error)}") from error


def _explain(
    error: ray.exceptions.RayTaskError, ref: ray.ObjectRef, refs: Sequence[ray.ObjectRef], method: str
) -> NoReturn:
    """A rank's own error comes first, whatever the others then say of it."""
    echo, nothing_done = is_echo(error), isinstance(error.cause, (ObjectsLost, NoRoom, *STORE_FULL))
    if echo or nothing_done:  # what have the others to say?
        ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=DEATH_NOTICE_S, fetch_local=False)
        errors = {other: _error_of(other) for other in ended}
        own = {
            other: said
            for other, said in errors.items()
            if isinstance(said, ray.exceptions.RayTaskError) and not is_echo(said)
        }
        lost = len(ended) < len(refs) or any(isinstance(said, ACTOR_LOST) for said in errors.values())
        if echo and own:
            ref, error = next(iter(own.items()))
        elif echo or lost:
            raise LearnerLost(f"learner rank {refs.index(ref)} lost another in {method!r}") from error
    rank, kind = f"learner rank {refs.index(ref)}", kind_of(error)
    if is_disk(error):
        raise RunFailed(
            f"{rank} in {method!r}: {one_line(error)}; make room there, the same command goes on"
        ) from error
    if kind is Kind.MEMORY:
        raise RunFailed(
            f"{rank} ran out of memory in {method!r}: {one_line(error)}; lower rl.micro_batch_tokens, "
            f"set rl.gradient_checkpointing or rl.offload, or give more ranks (cluster.learners)"
        ) from error
    if kind in (Kind.DEVICE, Kind.LOST, Kind.PREEMPTED, Kind.SYSTEM):
        raise LearnerLost(f"{rank} in {method!r}: {one_line(error)}") from error
    raise error


def _error_of(ref: ray.ObjectRef) -> Exception | None:
    try:
        ray.get(ref, timeout=1)
    except Exception as error:
        return error
    return None
