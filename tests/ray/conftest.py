"""One Ray cluster for the whole session, and a check that none of its processes outlives it."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import ray

TIMEOUT_S = 300
SESSION = "D1RAY_TEST_SESSION"  # marks every process that descends from this session, orphans included


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.ray)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def no_process_left_behind() -> Iterator[None]:
    """Fails the session's last Ray test when a process started during the session outlives it.

    A test that starts its own cluster, or a `d1ray` command, asks for this fixture; `ray_cluster` does.
    """
    session = uuid.uuid4().hex
    os.environ[SESSION] = session
    yield
    _, alive = psutil.wait_procs(_processes_of(session), timeout=20)
    left = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in alive]
    for process in alive:
        process.kill()
    assert not left, "still running 20 s after the last Ray test:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def ray_cluster(no_process_left_behind: None) -> Iterator[None]:
    """A four-CPU Ray, addressed over loopback; on a smaller machine the four share what there is."""
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True, scope="module")
def workers_can_load_this_module(request: pytest.FixtureRequest) -> None:
    """Actors and functions defined in a test file travel by value: its module is on no worker's path."""
    module = request.module
    assert isinstance(module, ModuleType)
    ray.cloudpickle.register_pickle_by_value(module)


def _processes_of(session: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(SESSION) == session
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if ours and process.pid != os.getpid():
            found.append(process)
    return found
