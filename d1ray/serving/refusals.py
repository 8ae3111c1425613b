"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``, and never a stack trace."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


class ApiError(Exception):
    """A request is answered with ``status``.

    Attributes:
        message: what was asked, what is the matter, and what to do.
        param: the part of the request that is wrong.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # ASCII, because a message may quote what is no valid Unicode.
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def internal_error() -> ApiError:
    """What clients learn of a fault of the server's own."""
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def invalid(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's errors about a request."""
    error = errors[0]
    path = [str(part) for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    # A union's error names the alternative that did not fit behind the field.
    alternatives = ("str", "list[", "constrained-", "function-")
    param = ".".join(part for part in path if not part.startswith(alternatives)) or None
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter: {param}", param=param, code="unknown_parameter")
    if error["type"] == "missing":
        message = f"{param} is missing" if param else "the body is missing; send a JSON object"
        return ApiError(400, message, param=param, code="missing_required_parameter")
    reason = error["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {reason}", param=param, code="invalid_value")
