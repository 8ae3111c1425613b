"""The API: OpenAI's endpoints for one served model, a page to try it, health and metrics."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response, StreamingResponse

from d1ray.serving import playground
from d1ray.serving.answering import Answer, as_api_error, progress
from d1ray.serving.asking import Asking
from d1ray.serving.config import ServeConfig
from d1ray.serving.generation import Backend, Progress, Unavailable
from d1ray.serving.guard import Guard
from d1ray.serving.protocol import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    ErrorAnswer,
    Health,
    Model,
    ModelList,
    Serving,
)
from d1ray.serving.refusals import ApiError, invalid
from d1ray.serving.traffic import Counting, Traffic

VERSION = "x-d1ray-version"  # the weights', on every answer
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 408, 413, 422, 429, 500, 503)
}
CLIENT_LEFT = 499


def create_app(config: ServeConfig, asking: Asking, backend: Backend, keys: tuple[bytes, ...]) -> FastAPI:
    """The ASGI application.

    Args:
        asking: reads requests.
        backend: makes completions.
        keys: of the API; without any it is open.
    """
    app = FastAPI(
        title="d1ray serve",
        version=metadata.version("d1ray"),
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    traffic, started, name = Traffic(), int(time.time()), config.served_name

    @app.post(
        "/v1/completions",
        response_model=CompletionAnswer,
        responses=REFUSALS | {200: {"content": {"text/event-stream": {}}}},
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        asked = await asyncio.to_thread(asking.completion, body)
        return await _answered(Answer("completion", asked, name), bool(body.stream), request)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatAnswer,
        responses=REFUSALS | {200: {"content": {"text/event-stream": {}}}},
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        asked = await asyncio.to_thread(asking.chat, body)
        return await _answered(Answer("chat", asked, name), bool(body.stream), request)

    async def _answered(answer: Answer, stream: bool, request: Request) -> Response:
        news = progress(backend, answer.asked)
        if stream:
            # Refusals come before the first event, so that they still can be an answer of their own.
            choice, step = await anext(news)
            answer.take(choice, step)
            return StreamingResponse(
                _counted(answer, news),
                media_type="text/event-stream",
                headers={VERSION: answer.version, "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        finished = await _unless_left(request, _finish(answer, news))
        if not finished:
            traffic.abandoned.inc()
            return Response(status_code=CLIENT_LEFT)
        traffic.count(answer.usage())
        return Response(
            answer.whole().model_dump_json(),
            media_type="application/json",
            headers={VERSION: answer.version},
        )

    async def _counted(
        answer: Answer, news: AsyncGenerator[tuple[int, Progress], None]
    ) -> AsyncGenerator[bytes, None]:
        whole = False
        try:
            async with aclosing(news), aclosing(answer.stream(news)) as events:
                async for event in events:
                    yield event
            whole = True
        finally:
            if whole:
                traffic.count(answer.usage())
            else:
                traffic.abandoned.inc()

    @app.get("/v1/models", responses=REFUSALS)
    async def models() -> ModelList:
        serving = await _serving()
        return ModelList(data=[Model(id=name, created=started, d1ray=serving)], d1ray=serving)

    @app.get("/v1/models/{model:path}", responses=REFUSALS)
    async def model(model: str) -> Model:
        if model != name:
            raise ApiError(
                404, f"the model {model!r} is not served here; {name!r} is", code="model_not_found"
            )
        return Model(id=name, created=started, d1ray=await _serving())

    async def _serving() -> Serving:
        return Serving(
            defaults=config.sampling.model_dump(exclude={"cfg_scale"}),
            limits=config.limits.model_dump() | {"context": asking.model.max_sequence_length},
            version=await _version(),
        )

    async def _version() -> str:
        try:
            return await backend.version()
        except Unavailable as error:
            raise as_api_error(error) from error

    @app.get("/health", responses={503: {"model": ErrorAnswer}})
    async def health() -> Health:
        return Health(version=await _version())

    @app.get("/metrics", response_class=Response, responses=REFUSALS)
    async def metrics() -> Response:
        return Response(traffic.exposition(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return playground.answer("index.html")

    @app.get("/page/{file}", include_in_schema=False)
    async def page_file(file: str) -> Response:
        return playground.answer(file)

    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _other)
    app.add_middleware(Guard, keys=keys, body_bytes=config.limits.body_bytes, body_s=config.limits.body_s)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=[VERSION],
        )
    app.add_middleware(Counting, traffic=traffic, paths=paths)
    return app


async def _finish(answer: Answer, news: AsyncGenerator[tuple[int, Progress], None]) -> None:
    async with aclosing(news):
        async for choice, step in news:
            answer.take(choice, step)


async def _unless_left(request: Request, work: Any) -> bool:
    """Waits for ``work`` to end; gives it up and returns False when the client goes away before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        await working
        return True
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response()


async def _other(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown paths, wrong methods, bodies that cannot be read."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed here"}
    message = messages.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return ApiError(error.status_code, message, headers=headers).response()
