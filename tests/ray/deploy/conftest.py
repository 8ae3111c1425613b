"""What the tests of deployments share: a folder short enough for Ray's sockets, free ports, waiting."""

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE_S = 240


@pytest.fixture
def ray_tmpdir() -> Iterator[Path]:
    """A short path: the names of Ray's sockets below it are limited to 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="d1", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(ray_tmpdir: Path) -> dict[str, str]:
    """For commands: this environment's programs, and a Ray folder of the test's own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return inherited | {"PATH": path, "RAY_TMPDIR": str(ray_tmpdir)}


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def port() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            number: int = listener.getsockname()[1]
            return number

    return port


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool], str], None]:
    def wait(reached: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not reached():
            assert time.monotonic() < end, f"{what}: not within {DEADLINE_S} s"
            time.sleep(0.2)

    return wait


@pytest.fixture
def steps_of() -> Callable[[Path], list[int]]:
    """``steps_of(run)``: the RL steps that a run has logged."""

    def steps(run: Path) -> list[int]:
        try:
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return []
        return [row["step"] for row in rows if row["stage"] == "rl"]

    return steps


@pytest.fixture
def saved_step() -> Callable[[Path], int]:
    """``saved_step(run)``: the step of the newest checkpoint of a run's RL stage."""
    from d1ray.run import checkpoint

    def step(run: Path) -> int:
        newest = checkpoint.latest(run / "checkpoints" / "rl")
        assert newest is not None
        return checkpoint.step_of(newest)

    return step
