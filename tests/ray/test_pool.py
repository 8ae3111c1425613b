"""Pools of real actors: constructors that fail, devices that fail, and what Ray says of either."""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ray

from actors.failures import Kind, kind_of
from actors.pool import Pool

WAIT_S = 60


class Worker:
    """Starts where its mount is there, and fails as it is told."""

    def __init__(self, mount: Path):
        if not mount.exists():
            raise FileNotFoundError(f"{mount} is not mounted")

    def work(self, error: Exception | None = None) -> tuple[None, int]:
        if error is not None:
            raise error
        return None, os.getpid()


def pool_of(mounts: list[Path], said: list[str]) -> Pool:
    run = uuid.uuid4().hex

    def create(place: int) -> Any:
        options: dict[str, Any] = {"name": f"{run}-{place}", "num_cpus": 0, "max_restarts": -1}
        return ray.remote(Worker).options(**options).remote(mounts[place])

    return Pool(create, len(mounts), title="worker", note=said.append)


def turn_until(pool: Pool, reached: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < end
        pool.watch.turn(0.2)
        pool.tend()


def answered(pool: Pool) -> int | None:
    """The process id of the first actor; None while it is not up."""
    if not pool.up[0]:
        return None
    try:
        return int(ray.get(pool.call(0, "work")[1], timeout=WAIT_S))
    except ray.exceptions.RayActorError:
        pool.lost(0)
        return None


def test_an_actor_whose_mount_is_late_joins_the_others_when_it_is_there(
    ray_cluster: None, tmp_path: Path
) -> None:
    said: list[str] = []
    late = tmp_path / "late"
    with closing(pool_of([tmp_path, late], said)) as pool:
        turn_until(pool, lambda: pool.up[0] and pool.places[1].health.failed_starts >= 2)
        assert pool.up == [True, False]
        late.mkdir()
        turn_until(pool, lambda: all(pool.up))
        (note,) = said
        assert note.startswith("worker 1 could not start, and is started again: ")
        assert note.endswith(f"FileNotFoundError: {late} is not mounted")


def test_a_device_s_error_is_told_from_others_and_its_process_starts_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    with closing(pool_of([tmp_path], [])) as pool:
        turn_until(pool, lambda: pool.up[0])
        before = ray.get(pool.call(0, "work")[1], timeout=WAIT_S)
        for error, kind in (
            (RuntimeError("CUDA error: an illegal memory access was encountered"), Kind.DEVICE),
            (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), Kind.MEMORY),
            (OSError(116, "Stale file handle"), Kind.SYSTEM),
            (ValueError("a group that cannot be read"), Kind.GROUP),
        ):
            try:
                ray.get(pool.call(0, "work", error)[1], timeout=WAIT_S)
            except Exception as raised:
                assert kind_of(raised) is kind
        under_way = pool.call(0, "work")[1]
        pool.restart(0)
        try:
            assert ray.get(under_way, timeout=WAIT_S) == before  # it was over already
        except ray.exceptions.RayError as raised:
            assert kind_of(raised) is Kind.LOST
        turn_until(pool, lambda: answered(pool) not in (None, before))
