"""What stands before every route: the API key, the limits of a body, and errors that give nothing away.

Plain ASGI, so that streams pass through untouched and a body is never held before it is measured.
"""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d1ray.serving.refusals import ApiError, internal_error

logger = logging.getLogger(__name__)
OPEN = ("/", "/health", "/openapi.json")  # and the page's files


class Guard:
    """
    Args:
        keys: any of which opens the API; without keys it is open.
        body_bytes, body_s: what a request's body may be at most, and take to come.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[bytes], body_bytes: int, body_s: float):
        self.app, self.body_bytes, self.body_s = app, body_bytes, body_s
        self.keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check_key(scope)
            await self.app(scope, await self._read(scope, receive), sending)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if begun:
                raise  # the server cuts the connection: half an answer must not pass for a whole one
            await internal_error().response()(scope, receive, send)

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        if not self.keys or path in OPEN or path.startswith("/page/"):
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        # All keys are compared, in constant time: how long it takes tells nothing about any of them.
        matches = [hmac.compare_digest(digest, own) for own in self.keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "no valid API key; send one as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the body, and gives it out again as one message.

        Raises:
            ApiError: it is too large or too slow.
        """
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not stated.isdigit() or int(stated[:20]) > self.body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return receive
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.body_bytes:
                        raise self._too_large()
        except TimeoutError:
            raise ApiError(
                408, f"the body did not come within {self.body_s:g} s", headers={"Connection": "close"}
            ) from None
        first: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal first
            message, first = first, None
            return await receive() if message is None else message

        return replay

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self.body_bytes} bytes", headers={"Connection": "close"}
        )


def _digest(key: bytes) -> bytes:
    """Of equal length for all keys."""
    return hashlib.sha256(key).digest()
