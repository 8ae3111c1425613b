"""`d1ray serve` on Ray: one light deployment speaks HTTP, replicas of the model make the completions.

A completion is a function of its request, its seed and the weights alone. So one whose replica dies is made
again by another, and what the client has had already is left out: it need not notice.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Gauge

from actors.placement import connected
from d1ray.config.cluster import ClusterConfig
from d1ray.config.errors import ResourceError, RunFailed
from d1ray.evaluation.config import model_folder
from d1ray.models.architectures import read_config
from d1ray.models.tokenizer import load_tokenizer
from d1ray.serving.api import create_app
from d1ray.serving.asking import Asking
from d1ray.serving.config import ServeConfig, read_keys
from d1ray.serving.generation import Generation, Progress, Refused, Unavailable
from d1ray.serving.local import start_engine

logger = logging.getLogger(__name__)
APPLICATION = "d1ray"
TRIES = 4  # of a generation whose replicas die
ACCEPTED_S = 60  # for a replica to take a generation on: as long as starting one may take
METRICS_S = 5  # a gauge that is not set again vanishes after a while
LOST = (RayActorError, RayServeException, TimeoutError)  # or nobody was found for ACCEPTED_S


class Replica:
    """One copy of the model, and the engine that denoises with it."""

    def __init__(self, config: ServeConfig):
        self.engine, self.follower = start_engine(config)
        self.rows = Gauge("d1ray_serve_rows", "Completions in a replica", tag_keys=("state",))
        self.reporting = asyncio.get_running_loop().create_task(self._report())

    async def generate(self, generation: Generation) -> AsyncGenerator[Progress | Refused, None]:
        """The engine's progress; ``Refused`` as a value, because Ray would log the error as a fault."""
        try:
            async with aclosing(self.engine.generate(generation)) as news:
                async for step in news:
                    yield step
        except Refused as refusal:
            yield refusal

    async def version(self) -> str:
        return await self.engine.version()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when it raises."""
        if not self.engine.healthy:
            raise RuntimeError("the engine's last denoising steps have all failed, or one hangs")

    async def _report(self) -> None:
        while True:
            self.rows.set(len(self.engine.schedule.active), {"state": "active"})
            self.rows.set(len(self.engine.schedule.waiting), {"state": "waiting"})
            await asyncio.sleep(METRICS_S)


class Replicas:
    """All replicas as one ``Backend``.

    A completion whose replica dies is made again by another; once a part of its text is out, only where it is
    sure to be the same.
    """

    def __init__(self, handle: DeploymentHandle):
        self.handle = handle

    async def generate(self, generation: Generation) -> AsyncGenerator[Progress, None]:
        given, version = 0, ""
        for attempt in range(TRIES):
            try:
                async with aclosing(self._once(generation)) as news:
                    place = 0
                    async for step in news:
                        place += 1
                        if given <= 1:  # nothing of the text is out yet
                            version = step.version
                        elif step.version != version or not step.exact:
                            raise Unavailable
                        if place > given:
                            given = place
                            yield step
                return
            except RequestCancelledError:  # the client left
                raise
            except TimeoutError as error:  # nobody took it on for as long as starting a replica may take
                raise Unavailable from error
            except LOST as error:
                logger.warning("a generation was lost (%s), try %d", type(error).__name__, attempt + 1)
                await asyncio.sleep(0.1 * 2**attempt)
        raise Unavailable

    async def version(self) -> str:
        try:
            return str(await asyncio.wait_for(self.handle.version.remote(), ACCEPTED_S))
        except LOST as error:
            raise Unavailable from error

    async def _once(self, generation: Generation) -> AsyncGenerator[Progress, None]:
        response = self.handle.options(stream=True).generate.remote(generation)
        steps, limit, ended = aiter(response), float(ACCEPTED_S), False
        try:
            while True:
                async with asyncio.timeout(limit if limit else None):
                    try:
                        step: Progress | Refused = await anext(steps)
                    except StopAsyncIteration:
                        ended = True
                        return
                limit = 0
                if isinstance(step, Refused):
                    raise step
                yield step
        except BackPressureError as error:
            raise Refused(1) from error
        finally:
            if not ended:
                response.cancel()


def build(settings: ServeConfig) -> serve.Application:
    """The application, for `serve run`, Ray Serve's config files and KubeRay's RayService.

    Raises:
        ModelError, ConfigError: there is no such model, or no key in the file of keys.
    """

    def application() -> FastAPI:
        folder = model_folder(settings.model)
        handle = serve.get_deployment_handle(Replica.__name__)
        asking = Asking(settings, load_tokenizer(folder), read_config(folder))
        return create_app(settings, asking, Replicas(handle), read_keys(settings.api_key_file))

    wanted, rows = settings.replicas, settings.limits.rows
    replica = serve.deployment(
        Replica,
        name=Replica.__name__,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=wanted.min, max_replicas=wanted.max, target_ongoing_requests=wanted.ongoing
        ),
        max_ongoing_requests=rows + 16,  # the engine refuses what is too much, and says until when
        max_queued_requests=rows,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=60,
    )
    api = serve.deployment(
        serve.ingress(application)(),
        name="Api",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4096,
        health_check_period_s=5,
    )
    return api.bind(replica.bind(settings))


def run(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM, on the cluster of ``RAY_ADDRESS`` or on one started for it.

    Raises:
        ModelError, ConfigError: as ``build``.
        ResourceError: the cluster lacks room for ``replicas.min``.
        RunFailed: the replicas do not start.
    """
    ending = threading.Event()
    with connected(ClusterConfig()):
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set handlers of its own
            signal.signal(number, lambda *_: ending.set())
        _check_room(config)
        serve.start(http_options=HTTPOptions(host=config.host, port=config.port))
        _check_alone(config)
        try:
            target = serve.RunTarget(target=build(config), name=APPLICATION, route_prefix="/")
            serve.run_many([target], wait_for_applications_running=False)
            if _wait_until_running(ending):
                print(f"serving {config.served_name} at http://{config.host}:{config.port}", flush=True)
            ending.wait()
        finally:
            serve.delete(APPLICATION)
            if not serve.status().applications:  # on a shared cluster others may be served beside it
                serve.shutdown()


def _check_room(config: ServeConfig) -> None:
    there: dict[str, Any] = ray.cluster_resources()
    for resource, each in (("CPU", config.replicas.cpus), ("GPU", config.replicas.gpus)):
        wanted, found = each * config.replicas.min, there.get(resource, 0)
        if wanted > found:
            raise ResourceError(
                f"{config.replicas.min} replica(s) need {wanted:g} {resource}, the cluster has {found:g}; "
                f"lower replicas.min or replicas.{resource.lower()}s"
            )


def _check_alone(config: ServeConfig) -> None:
    """Serve may have been running on the cluster: it keeps its address, and its applications."""
    if APPLICATION in serve.status().applications:
        raise ResourceError(
            f"this cluster serves an application {APPLICATION!r} already; "
            f"end it (`serve shutdown` ends all that is served there), or serve on another cluster"
        )
    there = serve.context._get_global_client().http_config
    if (there.host, there.port) != (config.host, config.port):
        raise ResourceError(
            f"Ray Serve listens on {there.host}:{there.port} on this cluster already, not on "
            f"{config.host}:{config.port}; give that as --host and --port, or end it by `serve shutdown`"
        )


def _wait_until_running(ending: threading.Event) -> bool:
    while not ending.wait(0.2):
        status = serve.status().applications.get(APPLICATION)
        if status is not None and status.status == "RUNNING":
            return True
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RunFailed(f"the replicas do not start: {status.message}")
    return False
