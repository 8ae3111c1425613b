"""Serving 64 clients: latency, tokens a second, memory, and what continuous batching gains.

The server is a process of its own, `d1ray serve --local`, with a tiny LLaDA on one CPU core.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

CLIENTS, SECONDS, WARM_UP_S, COMPARED_S = 64, 60, 15, 20
GAIN = 3.0  # tokens a CPU second (what else the machine runs does not count) over one request at a time
GROWTH = 0.05  # of the server's memory, from the end of the warm-up on


@contextmanager
def serving(folder: Path, *settings: str) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "d1ray", "serve", folder, "--local", "--port", str(port), *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.timeout(600)
def test_64_clients_for_a_minute(text_folder, serving_clients):
    asked = serving_clients.requests(60, seed=0)
    with serving(text_folder) as (url, process):
        expected = serving_clients.alone(url, asked)

        def load(seconds: float):
            return asyncio.run(serving_clients.load(url, CLIENTS, seconds, asked, expected))

        load(WARM_UP_S)
        before = process.memory_info().rss
        report = load(SECONDS)
        after = process.memory_info().rss
        metrics = httpx.get(f"{url}/metrics").text
    print(
        f"\n{CLIENTS} clients, {SECONDS} s: {len(report.seconds)} answers, {report.left} left, "
        f"{report.statuses[400]} malformed; {report.tokens / SECONDS:.0f} tokens/s; {dict(report.statuses)}"
        f"\nlatency p50 {report.percentile(0.5):.3f} s, p95 {report.percentile(0.95):.3f} s,"
        f" p99 {report.percentile(0.99):.3f} s; memory {before / 2**20:.0f} MB -> {after / 2**20:.0f} MB"
    )
    assert report.wrong == [] and report.broken == 0
    assert set(report.statuses) <= {200, 400}
    assert after < before * (1 + GROWTH)
    assert "d1ray_serve_requests_under_way 1.0" in metrics  # the question itself


@pytest.mark.timeout(600)
@pytest.mark.parametrize("alike", [True, False], ids=["the server's settings", "every mixture of settings"])
def test_continuous_batching_against_one_request_at_a_time(text_folder, serving_clients, alike):
    """The target holds where clients leave decoding and cache to the server. Requests that differ in them go
    through the model by themselves: the gain of any mixture is only printed."""
    asked = serving_clients.requests(60, seed=1, alike=alike)
    speed, thrift, expected = {}, {}, None
    for name, settings in (("one at a time", ["limits.batch_tokens=1"]), ("continuous batching", [])):
        with serving(text_folder, *settings) as (url, process):
            texts = serving_clients.alone(url, asked)
            expected = expected or texts
            assert texts == expected
            before = cpu_seconds(process)
            report = asyncio.run(
                serving_clients.load(url, CLIENTS, COMPARED_S, asked, expected, leaving=0, malformed=0)
            )
            thrift[name] = report.tokens / (cpu_seconds(process) - before)
        assert report.wrong == []
        speed[name] = report.tokens / COMPARED_S
        print(
            f"\n{name}: {speed[name]:.0f} tokens/s, {thrift[name]:.0f} tokens/CPU second; latency"
            f" p50 {report.percentile(0.5):.3f} s, p99 {report.percentile(0.99):.3f} s"
        )
    gain, saved = (x["continuous batching"] / x["one at a time"] for x in (speed, thrift))
    print(f"gain in time: {gain:.2f}, in CPU time: {saved:.2f}")
    assert not alike or saved >= GAIN
