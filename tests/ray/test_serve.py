"""`d1ray serve` on Ray: replicas may die under load, and nobody gets a wrong answer."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest


def free_port() -> int:
    """One below those that the system gives away by itself: Ray takes many of these meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


class Served:
    """A `d1ray serve` process, its address, and the processes of its replicas."""

    def __init__(self, folder: Path, *arguments: str):
        environment = {**os.environ, "RAY_AUTH_MODE": "token"}
        environment.pop("RAY_ADDRESS", None)
        port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "d1ray", "serve", folder, "--port", str(port), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.url = self._wait_for(r"serving tiny at (\S+)", 240)
        except BaseException:
            self.process.kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(iter(self.process.stdout.readline, ""))

    def _wait_for(self, pattern: str, seconds: float) -> str:
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, "".join(self.said))):
            assert self.process.poll() is None and time.monotonic() < end, "".join(self.said)
            time.sleep(0.1)
        return found[1]

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "ServeReplica:d1ray:Replica" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_until(self, replicas: int, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while len(self.replicas()) < replicas:
            assert time.monotonic() < end, f"{len(self.replicas())} of {replicas} replicas"
            time.sleep(0.2)

    def close(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)


@pytest.fixture(scope="module")
def served(text_folder: Path, no_process_left_behind: None) -> Iterator[Served]:
    settings = ["replicas.cpus=0.5", "limits.rows=32", "sampling.decoding=low_confidence"]
    served = Served(text_folder, "--replicas", "2:2", *settings)
    yield served
    assert served.close() == 0, "".join(served.said)


def killed_under_load(served: Served, clients, count: int, seconds: float):
    """What 12 clients saw while ``count`` replicas were killed."""
    asked = clients.requests(20, seed=count)
    expected = clients.alone(served.url, asked)
    victims = served.replicas()[:count]
    assert len(victims) == count

    async def go():
        load = asyncio.create_task(clients.load(served.url, 12, seconds, asked, expected))
        await asyncio.sleep(seconds / 4)
        for victim in victims:
            victim.kill()
        return await load

    report = asyncio.run(go())
    assert not any(victim.is_running() and victim.status() != "zombie" for victim in victims)
    return report, asked, expected


@pytest.mark.timeout(900)
def test_a_replica_killed_under_load_costs_no_answer(served, serving_clients):
    served.wait_until(2)
    report, asked, expected = killed_under_load(served, serving_clients, 1, 10)
    print(report.statuses, report.broken, len(report.seconds))
    assert report.wrong == []
    assert set(report.statuses) <= {200, 400, 429}
    assert report.broken == 0
    served.wait_until(2)
    assert serving_clients.alone(served.url, asked) == expected


@pytest.mark.timeout(900)
def test_without_any_replica_requests_wait_for_the_next_or_are_told_so(served, serving_clients):
    served.wait_until(2)
    report, asked, expected = killed_under_load(served, serving_clients, 2, 12)
    print(report.statuses, report.broken, len(report.seconds))
    assert report.wrong == []
    assert set(report.statuses) <= {200, 400, 429, 503}
    served.wait_until(2)
    assert serving_clients.alone(served.url, asked) == expected


def test_errors_and_health_are_the_apis_own(served):
    assert httpx.get(f"{served.url}/health", timeout=60).json()["status"] == "ok"
    answer = httpx.post(f"{served.url}/v1/completions", json={"model": "other", "prompt": "x"}, timeout=60)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert "d1ray_serve_requests_total" in httpx.get(f"{served.url}/metrics", timeout=60).text
