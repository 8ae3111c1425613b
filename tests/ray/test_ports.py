"""What listens while a run trains is what docs/security.md says, where it says, and asks for the token."""

import math
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
import ray

from actors.learner_gang import LearnerGang
from actors.policy import PolicyRef
from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.programs.stages import supervised_stages
from d1ray.run.folder import RunFolder
from d1ray.run.interrupt import Interrupted
from d1ray.run.progress import Progress

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
EVERYWHERE = {"::", "0.0.0.0"}
SETTINGS = [
    "rl.steps=2",
    "rl.sharding=fsdp",
    "rl.validate_every=2",
    "cluster.learners=2",
    "cluster.learner_cpus=0.25",
    "cluster.generators=2",
    "cluster.broadcast=true",
]
PROCESSES = {  # by what is in their command line
    "/gcs_server ": "gcs_server",
    "/raylet ": "raylet",
    "ray::DashboardAgent": "DashboardAgent",
    "ray::RuntimeEnvAgent": "RuntimeEnvAgent",
    "/dashboard.py ": "dashboard",
    "/monitor.py ": "autoscaler",
}
CALLS = {  # what a process's gRPC ports answer to whoever has the token
    "gcs_server": ["NodeInfoGcsService/GetAllNodeInfo"],
    "raylet": ["NodeManagerService/GetNodeStats", "ObjectManagerService/Pull"],
    "driver": ["CoreWorkerService/GetCoreWorkerStats"],
    "worker": ["CoreWorkerService/GetCoreWorkerStats"],
    "DashboardAgent": ["ReporterService/HealthCheck"],
}


class Listener(NamedTuple):
    process: str  # as the table calls it
    address: str
    port: int
    pid: int
    title: str


class Row(NamedTuple):
    process: str
    count: str
    where: str
    does: str
    token: str

    def covers(self, listener: Listener) -> bool:
        places = EVERYWHERE if self.where == "every interface" else set()
        if "loopback" in self.where:
            places = places | {"127.0.0.1", "::1"}
        if "the node's address" in self.where:
            places = places | {ray.util.get_node_ip_address()}
        return self.process == listener.process and listener.address in places


def table() -> list[Row]:
    section = PAGE.read_text().split("## Ports")[1].split("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [Row(*(cell.strip(" `") for cell in line.split("|"))) for line in lines[2:]]


def named(process: psutil.Process, everywhere: bool) -> str:
    """A process as the table calls it; an actor's port on every interface is Ray's, another its own."""
    title = " ".join(process.cmdline())
    for mark, name in PROCESSES.items():
        if mark in title:
            return name
    if process.pid == os.getpid():
        return "driver"
    actor = re.match(r"ray::\w*(Learner|Generator|RayTrainWorker)\b", title)
    if actor and not everywhere:
        return actor[1]
    return "worker" if title.startswith("ray::") else title


def listeners() -> list[Listener]:
    """Of this process and all below it."""
    found = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address, port = connection.laddr
                    name = named(process, address in EVERYWHERE)
                    found.append(Listener(name, address, port, process.pid, " ".join(process.cmdline())))
    return found


def undocumented(found: Iterable[Listener]) -> list[Listener]:
    """Those beyond the table's rows for their process."""
    left: dict[tuple[int, Row], float] = {}
    wrong = []
    for listener in found:
        for row in table():
            key = listener.pid, row
            left.setdefault(key, math.inf if row.count == "any" else int(row.count))
            if left[key] and row.covers(listener):
                left[key] -= 1
                break
        else:
            wrong.append(listener)
    return wrong


@pytest.fixture(scope="module")
def training(
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Listener]:
    """What listens once the ranks have met, and the generators in a broadcast."""
    found: list[Listener] = []
    publish = LearnerGang.publish

    def publish_and_look(self: LearnerGang, *arguments: Any) -> PolicyRef:
        policy = publish(self, *arguments)
        found[:] = listeners()
        return policy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnerGang, "publish", publish_and_look)
        reinforced(config_of(tmp_path_factory.mktemp("ports") / "run", *SETTINGS))
    return found


@pytest.fixture(scope="module")
def tuning(
    ray_cluster: None, small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> list[Listener]:
    """What listens while Ray Train's workers train. Once it is known they are told to stop."""
    found: list[Listener] = []
    sft = ["sft={batch_size: 8, examples: 6, steps: 1000000}", "cluster.sft_workers=2"]
    config = load_config("sudoku-tiny", small_run(tmp_path_factory.mktemp("ports") / "run", *sft))
    assert config.run_dir is not None
    with RunFolder.open(config.run_dir, config) as run, Progress() as progress:
        run.listeners.append(lambda row: found.extend([] if found else listeners()))
        with pytest.raises(Interrupted):
            supervised_stages(config, run, progress, lambda: bool(found))
    return found


def test_what_listens_is_documented(training: list[Listener], tuning: list[Listener]) -> None:
    for found in (training, tuning):
        assert undocumented(found) == []
        assert {"gcs_server", "raylet", "driver", "worker"} <= {listener.process for listener in found}


def test_collectives_of_one_machine_listen_on_loopback_alone(
    training: list[Listener], tuning: list[Listener]
) -> None:
    for actor, found in (("Learner", training), ("Generator", training), ("RayTrainWorker", tuning)):
        own = [listener for listener in found if listener.process == actor]
        assert len({listener.pid for listener in own}) == 2
        assert {listener.address for listener in own} == {"127.0.0.1"}


def test_a_port_more_than_documented_is_found(ray_cluster: None) -> None:
    for address in ("0.0.0.0", "127.0.0.1"):
        with socket.create_server((address, 0)) as listener:
            port = listener.getsockname()[1]
            assert port in {found.port for found in undocumented(listeners())}


def test_what_asks_for_the_token_does_not_answer_without_it(ray_cluster: None) -> None:
    promised = {row.process for row in table() if row.token.startswith("yes")}
    answered = set()
    for listener in listeners():
        for call in CALLS.get(listener.process, []) if listener.process in promised else []:
            if answer(listener.port, call, token=True) == "OK":
                assert answer(listener.port, call, token=False) == "UNAUTHENTICATED", listener
                answered.add(call)
    assert answered == {call for calls in CALLS.values() for call in calls}


def answer(port: int, call: str, token: bool) -> str:
    """The status of an empty request."""
    metadata = [("authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_the_agent_of_environments_does_not_answer_without_it(ray_cluster: None) -> None:
    agents = [listener for listener in listeners() if listener.process == "RuntimeEnvAgent"]
    assert agents
    for agent in agents:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://{agent.address}:{agent.port}/", timeout=10)
