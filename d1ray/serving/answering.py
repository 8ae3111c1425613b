"""From progress to answers: one JSON object, or a stream of server-sent events, in OpenAI's form."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from d1ray.serving.asking import Asked
from d1ray.serving.generation import Backend, Generation, Progress, Refused, Unavailable
from d1ray.serving.protocol import (
    AssistantMessage,
    ChatAnswer,
    ChatChoice,
    CompletionAnswer,
    CompletionChoice,
    Origin,
    Usage,
)
from d1ray.serving.refusals import ApiError, internal_error

logger = logging.getLogger(__name__)
Kind = Literal["completion", "chat"]


async def progress(backend: Backend, asked: Asked) -> AsyncGenerator[tuple[int, Progress], None]:
    """(choice, progress) of all completions, as they come. Leaving early gives all of them up.

    Raises:
        ApiError: one of them cannot be made.
    """
    news: asyncio.Queue[tuple[int, Progress | Exception]] = asyncio.Queue()

    async def follow(choice: int, generation: Generation) -> None:
        try:
            async with aclosing(backend.generate(generation)) as steps:
                async for step in steps:
                    news.put_nowait((choice, step))
        except Exception as error:
            news.put_nowait((choice, error))

    tasks = [asyncio.create_task(follow(*pair)) for pair in enumerate(asked.generations)]
    try:
        left = len(tasks)
        while left:
            choice, step = await news.get()
            if isinstance(step, Exception):
                raise as_api_error(step)
            left -= step.finish is not None
            yield choice, step
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of a backend's failure."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        headers = {"Retry-After": str(error.retry_after)}
        return ApiError(429, str(error), code="server_busy", headers=headers)
    if isinstance(error, Unavailable):
        return ApiError(
            503,
            "the replica at work on this died, and no other could go on; try again",
            code="unavailable",
            headers={"Retry-After": "5"},
        )
    logger.error("a request failed", exc_info=error)
    return internal_error()


class Answer:
    """One answer in the making.

    Args:
        kind: of the endpoint.
        asked: the completions.
        model: the served name.
    """

    def __init__(self, kind: Kind, asked: Asked, model: str):
        self.kind, self.asked, self.model = kind, asked, model
        self.id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.texts = [""] * len(asked.generations)
        self.last: dict[int, Progress] = {}  # of each choice

    @property
    def version(self) -> str:
        """Of the weights; of several, if they changed while the choices of one request began."""
        return ",".join(sorted({step.version for step in self.last.values()}))

    def take(self, choice: int, step: Progress) -> None:
        self.last[choice] = step
        self.texts[choice] += step.text

    def usage(self) -> Usage:
        tokens = sum(step.tokens for step in self.last.values())
        return Usage(
            prompt_tokens=self.asked.prompt_tokens,
            completion_tokens=tokens,
            total_tokens=self.asked.prompt_tokens + tokens,
            forwards=sum(step.forwards for step in self.last.values()),
            seconds=round(max((step.seconds for step in self.last.values()), default=0.0), 6),
        )

    def whole(self) -> CompletionAnswer | ChatAnswer:
        """The answer, once every choice is finished."""
        head: dict[str, Any] = self._head() | {"usage": self.usage(), "d1ray": self._origin()}
        reasons: list[Any] = [self.last[choice].finish for choice in range(len(self.texts))]
        if self.kind == "completion":
            return CompletionAnswer(
                **head,
                choices=[
                    CompletionChoice(index=i, text=text, finish_reason=reasons[i])
                    for i, text in enumerate(self.texts)
                ],
            )
        return ChatAnswer(
            **head,
            choices=[
                ChatChoice(index=i, message=AssistantMessage(content=text), finish_reason=reasons[i])
                for i, text in enumerate(self.texts)
            ],
        )

    async def stream(self, news: AsyncIterator[tuple[int, Progress]]) -> AsyncGenerator[bytes, None]:
        """Server-sent events of ``news``, which this answer may have taken the first of.

        An error after the first event ends the stream with an event that describes it.
        """
        try:
            if self.kind == "chat":
                for choice in range(len(self.texts)):
                    yield self._chunk(choice, {"role": "assistant", "content": ""}, None)
            async for choice, step in news:
                self.take(choice, step)
                if step.step is not None:
                    yield self._event(choice, step)
                if step.text:
                    yield self._chunk(choice, {"content": step.text}, None)
                if step.finish is not None:
                    yield self._chunk(choice, {}, step.finish)
        except ApiError as error:
            yield _data(error.body())
            return
        if self.asked.usage:
            yield _data(
                self._chunk_head()
                | {"choices": [], "usage": self.usage().model_dump(), "d1ray": self._origin().model_dump()}
            )
        yield b"data: [DONE]\n\n"

    def _chunk(self, choice: int, delta: dict[str, str], finish: str | None) -> bytes:
        body: dict[str, Any] = {"index": choice, "logprobs": None, "finish_reason": finish}
        body |= {"delta": delta} if self.kind == "chat" else {"text": delta.get("content", "")}
        usage = {"usage": None} if self.asked.usage else {}
        return _data(self._chunk_head() | {"choices": [body]} | usage)

    def _event(self, choice: int, step: Progress) -> bytes:
        assert step.step is not None
        return b"event: denoising\n" + _data(
            {
                "object": "d1ray.denoising",
                "index": choice,
                "step": step.step.number,
                "block": step.step.block,
                "positions": step.step.positions,
                "tokens": step.step.tokens,
                "confidences": [round(confidence, 4) for confidence in step.step.confidences],
                "forwards": step.forwards,
                "gen_length": self.asked.generations[choice].config.gen_length,
            }
        )

    def _chunk_head(self) -> dict[str, Any]:
        return self._head() | ({"object": "chat.completion.chunk"} if self.kind == "chat" else {})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion" if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.version,
        }

    def _origin(self) -> Origin:
        return Origin(version=self.version, seed=self.asked.seed)


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
