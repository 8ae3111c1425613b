"""Traffic: what the API counts, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d1ray.serving.protocol import Usage

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Traffic:
    """The metrics of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "d1ray_serve_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.under_way = Gauge(
            "d1ray_serve_requests_under_way", "Requests being answered", registry=self.registry
        )
        self.seconds = Histogram(
            "d1ray_serve_request_seconds",
            "To the end of the answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("d1ray_serve_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.tokens = Counter(
            "d1ray_serve_completion_tokens", "Tokens of completions", registry=self.registry
        )
        self.forwards = Counter(
            "d1ray_serve_forwards", "Forward passes that rows took part in", registry=self.registry
        )
        self.abandoned = Counter("d1ray_serve_abandoned", "Answers whose client left", registry=self.registry)

    def count(self, usage: Usage) -> None:
        """A finished answer."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.tokens.inc(usage.completion_tokens)
        self.forwards.inc(usage.forwards)

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class Counting:
    """Counts requests, by the paths that exist."""

    def __init__(self, app: ASGIApp, traffic: Traffic, paths: frozenset[str]):
        self.app, self.traffic, self.paths = app, traffic, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status, started = "none", time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self.traffic.under_way.track_inprogress():
            try:
                await self.app(scope, receive, sending)
            finally:
                self.traffic.requests.labels(path, status).inc()
                self.traffic.seconds.labels(path).observe(time.monotonic() - started)
