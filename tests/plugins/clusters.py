"""Ray clusters for tests: one for the whole session, those that a test starts itself, and a check that no
process outlives it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from warm_workers import warm_workers

SESSION = "D1RAY_TEST_SESSION"  # marks every process that descends from this session, orphans included


@pytest.fixture(scope="session")
def no_process_left_behind() -> Iterator[None]:
    """Fails the session's last Ray test when a process started during the session outlives it.

    A test that starts its own cluster, or a `d1ray` command, asks for this fixture; `ray_cluster` does.
    """
    import psutil

    session = uuid.uuid4().hex
    os.environ[SESSION] = session
    yield
    _, alive = psutil.wait_procs(_processes_of(session), timeout=20)
    left = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in alive]
    for process in alive:
        process.kill()
    assert not left, "still running 20 s after the last Ray test:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def processes() -> Callable[..., list[Any]]:
    """``processes(title, pid)``: those below ``pid``, this process by default, whose title begins so.

    Ray gives its workers titles: ``ray::Generator`` when idle, ``ray::Generator.generate`` in a call.
    """
    import psutil

    def found(title: str, pid: int | None = None) -> list[psutil.Process]:
        titled = []
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if " ".join(process.cmdline()).startswith(title):
                    titled.append(process)
        return titled

    return found


@pytest.fixture(scope="session")
def ray_cluster(
    no_process_left_behind: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A four-CPU Ray, addressed over loopback; on a smaller machine the four share what there is.

    Its workers start warm, but for benchmarks. In all other clusters they start as Ray starts them.
    """
    import ray

    measured = any("benchmarks" in item.path.parts for item in request.session.items)
    with nullcontext() if measured else warm_workers(tmp_path_factory.mktemp("workers")):
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


class StartedCluster:
    """A cluster as its administrator makes one: by `ray start`, a process a node, and protected by the token.

    Each node has a loopback address of its own (Linux answers at all of 127/8), and each port is a free one,
    so that several clusters fit on a machine. ``close`` ends every process of it.

    Args:
        environment: beyond this process's, of the nodes and so of what runs on them.
    """

    def __init__(self, **environment: str):
        self.folder = Path(tempfile.mkdtemp(prefix="d1ray", dir="/tmp"))  # the names of sockets must be short
        self.nodes: list[subprocess.Popen[bytes]] = []
        ports = _free_ports(5)
        self.address = f"127.0.0.2:{ports[0]}"  # for ray.init and RAY_ADDRESS
        self.dashboard = f"http://127.0.0.1:{ports[1]}"
        self._head = [
            "--head",
            f"--port={ports[0]}",
            f"--dashboard-port={ports[1]}",
            f"--ray-client-server-port={ports[2]}",
        ]
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {  # of commands like `ray job submit`, too
            **inherited,
            "PATH": programs,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "AUTOSCALER_METRIC_PORT": str(ports[3]),
            "DASHBOARD_METRIC_PORT": str(ports[4]),
            **environment,
        }

    def start(self, *options: str) -> None:
        """Starts a node, the first one as the head, and waits until it is up."""
        number = len(self.nodes)
        folder = self.folder / str(number)
        folder.mkdir()
        where = [f"--node-ip-address=127.0.0.{2 + number}", f"--temp-dir={folder}"]
        small = ["--num-gpus=0", f"--object-store-memory={100 * 2**20}", "--dashboard-agent-listen-port=0"]
        role = [f"--address={self.address}"] if number else self._head
        command = ["ray", "start", "--block", *where, *small, *role, *options]
        with (folder / "said").open("wb") as said:
            node = subprocess.Popen(
                command, env=self.environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL
            )
        self.nodes.append(node)
        end = time.monotonic() + 120
        while "Ray runtime started" not in (text := (folder / "said").read_text()):
            assert node.poll() is None and time.monotonic() < end, text
            time.sleep(0.1)

    def close(self) -> None:
        import psutil

        for node in reversed(self.nodes):
            if node.poll() is None:
                processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
                node.terminate()
                alive = psutil.wait_procs(processes, timeout=5)[1]  # nodes that an autoscaler has added stay
                for process in alive:
                    process.kill()
                psutil.wait_procs(alive, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def started_cluster(no_process_left_behind: None) -> Iterator[Callable[..., StartedCluster]]:
    """``started_cluster(NAME=VALUE)``: a cluster without nodes yet, which ends with the module's tests."""
    clusters: list[StartedCluster] = []

    def make(**environment: str) -> StartedCluster:
        clusters.append(StartedCluster(**environment))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close()


def _processes_of(session: str) -> list[Any]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(SESSION) == session
            ours = ours and "multiprocessing.resource_tracker" not in " ".join(
                process.cmdline()
            )  # pytest's own
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if ours and process.pid != os.getpid():
            found.append(process)
    return found
