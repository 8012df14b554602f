"""A request's body, read strictly: JSON that means one thing only, or a form; otherwise a refusal that says why."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

from captioner.errors import ParameterInvalid, ParameterUnknown
from captioner.wire import PARAMETERS
from frontend.http_errors import BodyRefused, BodyTypeUnknown

MAX_FIELDS = 64
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")

Value = str | int | float | bool


async def read_json(request: Request) -> dict[str, Any]:
    """The body's JSON object."""
    body = await request.body()
    check_type(request, "application/json")
    return parse_json(body)


async def read_form(request: Request) -> FormData:
    """The body's fields and files."""
    try:
        return await request.form(max_files=MAX_FIELDS, max_fields=MAX_FIELDS)
    except HTTPException as error:
        raise BodyRefused(f"the body is no multipart form: {error.detail}") from None


def check_type(request: Request, *known: str) -> str:
    """The body's media type, one of `known`; parameters in the address are refused as well."""
    if request.query_params:
        name = next(iter(request.query_params))
        raise ParameterUnknown(f"{name[:80]!r} is in the address; parameters belong in the body")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in known:
        raise BodyTypeUnknown(f"the Content-Type is {media_type[:80]!r}; it must be {' or '.join(known)}")
    return media_type


def parse_json(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, no name twice, no NaN, no half characters, an object at the top."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        if _HALF_CHARACTER.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise BodyRefused(f"the body is no UTF-8 text: byte {error.start} is {body[error.start]:#04x}") from None
    except UnicodeEncodeError:
        raise BodyRefused("the body writes half of a character (a lone surrogate)") from None
    except RecursionError:
        raise BodyRefused("the body is nested too deeply") from None
    except ValueError as error:
        raise BodyRefused(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BodyRefused("the body must be a JSON object")
    return value


def form_value(name: str, text: str) -> Value:
    """A form's text in the type of the parameter `name`; its range is checked with all others'."""
    parameter = PARAMETERS[name]
    if parameter.kind is bool and text in ("true", "false"):
        return text == "true"
    if parameter.kind is str:
        return text
    if parameter.kind is int and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if parameter.kind is float and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?(e-?[0-9]{1,2})?", text):
        return float(text)
    raise ParameterInvalid(f"{name} is {text[:80]!r}; it must be {parameter.range}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} is there twice")
    return members


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
