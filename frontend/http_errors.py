"""What the HTTP doors answer instead of a caption: every refusal with its status, in the shape that OpenAI's has.

`code` is the same stable code as everywhere, but for the two that OpenAI's clients look for by name.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import JSONResponse

from captioner.errors import (
    AccessDenied,
    CaptionerError,
    CaptionsDiffer,
    DeadlineExceeded,
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
    """The request's body is not the JSON or the form that it says it is."""

    code = "BODY_REFUSED"
    status = "INVALID_ARG"


class BodyTooLarge(BodyRefused):
    code = "BODY_TOO_LARGE"


class BodyTooSlow(BodyRefused):
    code = "BODY_TOO_SLOW"


class BodyTypeUnknown(BodyRefused):
    """The Content-Type is none that is read here."""

    code = "BODY_TYPE_UNKNOWN"


class AccessRefused(CaptionerError):
    """No key or password, or a wrong one."""

    code = "ACCESS_REFUSED"
    status = "INVALID_ARG"


class ModelUnknown(CaptionerError):
    """The model that was asked for is not the one served."""

    code = "MODEL_UNKNOWN"
    status = "INVALID_ARG"


class PathUnknown(CaptionerError):
    code = "PATH_UNKNOWN"
    status = "INVALID_ARG"


class MethodRefused(CaptionerError):
    code = "METHOD_REFUSED"
    status = "INVALID_ARG"


STATUSES: dict[type[CaptionerError], int] = {
    AccessDenied: 502,  # by the captioner server, of this one
    AccessRefused: 401,
    BodyRefused: 400,
    BodyTooLarge: 413,
    BodyTooSlow: 408,
    BodyTypeUnknown: 415,
    CaptionsDiffer: 503,
    DeadlineExceeded: 504,
    HubUnreachable: 503,
    ImageRefused: 400,
    ImageTooLarge: 413,
    MethodRefused: 405,
    ModelUnknown: 404,
    ParameterRefused: 400,
    PathUnknown: 404,
    RequestCancelled: 499,  # as nginx logs it; the client that left does not see it
    ServerBusy: 503,
    ServerStopping: 503,
    ServerUnreachable: 503,
    StreamStalled: 504,
    CaptionerError: 500,
}
OPENAI_CODES = {AccessRefused.code: "invalid_api_key", ModelUnknown.code: "model_not_found"}
RETRY_AFTER_S = 1


def status_of(error: CaptionerError) -> int:
    """The HTTP status of a refusal: its own or that of its nearest parent."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def refusal_body(error: CaptionerError) -> dict[str, Any]:
    """`{"error": {"code", "message", "type", "param"}}`, of which our own doors need the first two."""
    kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    return {
        "error": {
            "code": OPENAI_CODES.get(error.code, error.code),
            "message": str(error),
            "type": "authentication_error" if isinstance(error, AccessRefused) else kind,
            "param": _parameter(error),
        }
    }


def refusal(error: CaptionerError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The whole answer; one that may go away by itself says when to ask again."""
    status = status_of(error)
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(refusal_body(error), status, retry | (headers or {}))


def _parameter(error: CaptionerError) -> str | None:
    """The parameter that a refusal is about: its sentence begins with the name."""
    if isinstance(error, ModelUnknown):
        return "model"
    found = re.match(r"'?([\w.\[\]]+)'? (?:is|has|must|needs|holds|')", str(error))
    return found[1] if found and isinstance(error, ParameterRefused) else None
