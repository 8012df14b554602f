"""Errors as HTTP responses: the status of each error class, and a JSON body in the format of the endpoint's API.

The format is OpenAI's unless the endpoint has its own. In OpenAI's, `code` is the error's stable code, with two
exceptions: OpenAI's clients look for their own codes there.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from captioner.errors import (
    AccessDenied,
    CaptionerError,
    CaptionsDiffer,
    DeadlineExceeded,
    EncoderStalled,
    HubUnreachable,
    ImageRefused,
    ImageTooLarge,
    ParameterRefused,
    RequestCancelled,
    ServerBusy,
    ServerStopping,
    ServerUnreachable,
    StreamStalled,
)


class BodyRefused(CaptionerError):
    """The request body is not valid JSON or not a valid form."""

    code = "BODY_REFUSED"
    status = "INVALID_ARG"


class BodyTooLarge(BodyRefused):
    code = "BODY_TOO_LARGE"


class BodyTooSlow(BodyRefused):
    code = "BODY_TOO_SLOW"


class BodyTypeUnknown(BodyRefused):
    """The Content-Type is not supported."""

    code = "BODY_TYPE_UNKNOWN"


class AccessRefused(CaptionerError):
    """The key or password is missing or wrong."""

    code = "ACCESS_REFUSED"
    status = "INVALID_ARG"


class OriginRefused(CaptionerError):
    """The request comes from the web page of another site, or for another host."""

    code = "ORIGIN_REFUSED"
    status = "INVALID_ARG"


class ModelUnknown(CaptionerError):
    """The requested model is not the served one."""

    code = "MODEL_UNKNOWN"
    status = "INVALID_ARG"


class PathUnknown(CaptionerError):
    code = "PATH_UNKNOWN"
    status = "INVALID_ARG"


class MethodRefused(CaptionerError):
    code = "METHOD_REFUSED"
    status = "INVALID_ARG"


STATUSES: dict[type[CaptionerError], int] = {
    AccessDenied: 502,  # the captioner server denied this process, not the caller
    AccessRefused: 401,
    BodyRefused: 400,
    BodyTooLarge: 413,
    BodyTooSlow: 408,
    BodyTypeUnknown: 415,
    CaptionsDiffer: 503,
    DeadlineExceeded: 504,
    EncoderStalled: 503,
    HubUnreachable: 503,
    ImageRefused: 400,
    ImageTooLarge: 413,
    MethodRefused: 405,
    ModelUnknown: 404,
    OriginRefused: 403,
    ParameterRefused: 400,
    PathUnknown: 404,
    RequestCancelled: 499,  # nginx's code for a client that disconnected; only metrics see it
    ServerBusy: 503,
    ServerStopping: 503,
    ServerUnreachable: 503,
    StreamStalled: 504,
    CaptionerError: 500,
}
OPENAI_CODES = {AccessRefused.code: "invalid_api_key", ModelUnknown.code: "model_not_found"}
RETRIES_PER_S = 20  # that this process invites
MIN_RETRY_S, MIN_SPREAD_S, MAX_SPREAD_S = 0.1, 1.0, 30.0
ERROR_CODE = "captioner.error_code"  # in the scope: the code of the error response, for the metrics
ERROR_BODY = "captioner.error_body"  # in the scope: the ErrorBody of the endpoint

ErrorBody = Callable[[CaptionerError], dict[str, Any]]  # an error → the JSON of its response


def status_of(error: CaptionerError) -> int:
    """Return the HTTP status of an error: that of its class or of the nearest parent class."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def error_body(error: CaptionerError) -> dict[str, Any]:
    """Return `{"error": {"code", "message", "type", "param"}}`; `type` and `param` are for OpenAI's clients."""
    kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    return {
        "error": {
            "code": OPENAI_CODES.get(error.code, error.code),
            "message": str(error),
            "type": "authentication_error" if isinstance(error, AccessRefused) else kind,
            "param": _parameter(error),
        }
    }


class ErrorResponse(JSONResponse):
    """The response for an error, in the format of the endpoint. It leaves the error's code in the scope."""

    def __init__(self, error: CaptionerError, headers: dict[str, str]) -> None:
        super().__init__(error_body(error), status_of(error), headers)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        scope[ERROR_CODE] = self._error.code
        if (body_of := scope.get(ERROR_BODY)) is not None:
            self.body = self.render(body_of(self._error))
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def error_response(error: CaptionerError, headers: dict[str, str] | None = None) -> ErrorResponse:
    """Return the response for an error. A 503 says after which random time to retry."""
    return ErrorResponse(error, (_retry_times.headers() if status_of(error) == 503 else {}) | (headers or {}))


class RetryTimes:
    """Draws the times at which refused clients come back: not together, and not more than RETRIES_PER_S of them.

    Hundreds of clients that return within a second would take this process's time from the requests in flight.
    """

    def __init__(self) -> None:
        self._refusals: deque[float] = deque()  # times of the last second

    def headers(self) -> dict[str, str]:
        """Return Retry-After in whole seconds and retry-after-ms, which OpenAI's clients prefer."""
        now = time.monotonic()
        self._refusals.append(now)
        while self._refusals[0] < now - 1:
            self._refusals.popleft()
        spread_s = min(max(len(self._refusals) / RETRIES_PER_S, MIN_SPREAD_S), MAX_SPREAD_S)
        wait_s = random.uniform(MIN_RETRY_S, spread_s)
        return {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(round(wait_s * 1000))}


_retry_times = RetryTimes()


def _parameter(error: CaptionerError) -> str | None:
    """Return the parameter that an error is about: its message begins with the name."""
    if isinstance(error, ModelUnknown):
        return "model"
    match = re.match(r"'?([\w.\[\]]+)'? (?:is|has|must|needs|holds|')", str(error))
    return match[1] if match and isinstance(error, ParameterRefused) else None
