"""What a group costs the driver, from ten generators to a thousand, beside what Ray's own calls cost it.

The generators are stubs: many places of a pool share a few real asynchronous actors, because a machine has
no room for a thousand processes. Calls, references, waits and answers are Ray's own; only who sleeps is not.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray

from actors.buffer import RolloutBuffer
from actors.policy import PolicyRef, Weights
from actors.pool import Pool
from actors.watch import Watch
from d1ray.config.sampling import SamplerConfig
from d1ray.rl.rollout import Prompt, Request
from d1ray.tasks.task import Example

RATE = 50.0  # groups a second, whatever the number of generators
SIZES, SECONDS, HOSTS = (10, 100, 1000), 10.0, 4  # seconds at least; a rollout takes up to twenty
MOST = 0.5  # of a core at RATE with the most generators
STEEPEST = 4.0  # times the cost of a group, with a hundred times the generators


class Stub:
    """A generator and a scorer that only wait."""

    async def generate(
        self, request: Request, policy: PolicyRef, seconds: float
    ) -> tuple[None, dict[str, Any]]:
        await asyncio.sleep(seconds)
        return None, {"incarnation": policy.incarnation, "policy_version": policy.version}

    async def score(self, table: None, metadata: dict[str, Any]) -> tuple[None, dict[str, Any]]:
        return table, metadata


@dataclass
class Place:
    """Stands for an actor's handle: a stub, and how long its rollouts take."""

    host: Any
    seconds: float

    def __getattr__(self, name: str) -> Any:
        return Generate(self) if name == "generate" else getattr(self.host, name)


@dataclass
class Generate:
    place: Place

    def options(self, num_returns: int) -> "Generate":
        return self

    def remote(self, request: Request, policy: PolicyRef) -> Any:
        return self.place.host.generate.options(num_returns=2).remote(request, policy, self.place.seconds)


@pytest.fixture(scope="module")
def hosts(ray_cluster: None) -> Iterator[list[Any]]:
    stub = ray.remote(num_cpus=0, max_concurrency=5000)(Stub)
    actors = [stub.remote() for _ in range(HOSTS)]
    ray.get([actor.__ray_ready__.remote() for actor in actors], timeout=60)
    yield actors
    for actor in actors:
        ray.kill(actor)


def cost(hosts: list[Any], size: int) -> tuple[float, float]:
    """CPU seconds of the driver's process for a group, and its share of a core, with ``size`` generators."""
    seconds, watch = size / RATE, Watch()
    generators = Pool(lambda index: Place(hosts[index % HOSTS], seconds), size, watch)
    scorers = Pool(lambda index: hosts[index % HOSTS], 4, watch)
    while not all(generators.up):
        watch.turn(0.2)
    buffer = RolloutBuffer(generators, scorers, 2 * size, deadline_s=600)
    example, sampling = Example("stub", "0", "?", {}), SamplerConfig()
    policy, number = PolicyRef(1, Weights(1)), 0

    def fill() -> None:
        nonlocal number
        while buffer.has_slot():
            buffer.start(Request((Prompt(number, (1,) * 100, example),), 8, sampling, 0), policy)
            number += 1

    fill()
    buffer.release(buffer.take(size // 2))  # all are at work
    fill()
    done, began, used = buffer.done, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < max(SECONDS, seconds):
        buffer.release(buffer.take(1))
        fill()
    used, took, done = time.process_time() - used, time.perf_counter() - began, buffer.done - done
    return used / done, used / took


def bare(hosts: list[Any], calls: int = 500) -> float:
    """CPU seconds of the driver for two calls of Ray, one after the other, as a group makes them."""
    request = Request((Prompt(0, (1,) * 100, Example("stub", "0", "?", {})),), 8, SamplerConfig(), 0)
    used = time.process_time()
    for _ in range(calls):
        generated = hosts[0].generate.options(num_returns=2).remote(request, PolicyRef(1, Weights(1)), 0.0)
        ray.get(hosts[1].score.options(num_returns=2).remote(*generated)[1], timeout=60)
    return (time.process_time() - used) / calls


@pytest.mark.timeout(600)
def test_a_thousand_generators_cost_the_driver_little_more_a_group_than_ten(hosts: list[Any]) -> None:
    base = bare(hosts)
    costs = {}
    for size in SIZES:
        costs[size], share = cost(hosts, size)
        print(
            f"\n{size} generators: {costs[size] * 1e3:.2f} ms a group, {costs[size] / base:.1f} x Ray's two "
            f"calls; {share:.1%} of a core at {share / costs[size]:.0f} groups/s"
        )
    assert share <= MOST
    assert costs[SIZES[-1]] <= STEEPEST * costs[SIZES[0]]
