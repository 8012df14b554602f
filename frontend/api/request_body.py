"""Strict parsing of request bodies: JSON without duplicate keys, a form, or an image file. Errors say what is wrong.

Large bodies are parsed off the event loop. A form's parser is Python, and its time depends on the body's bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Collection
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from captioner.errors import ImageMissing, ParameterInvalid, ParameterUnknown
from captioner.image.limits import check_file_size
from captioner.wire import PARAMETERS
from frontend.http_errors import BodyRefused, BodyTypeUnknown
from frontend.off_loop import SMALL_BYTES, off_loop

FILE_TYPES = ("application/octet-stream", "application/x-image")
MAX_FIELDS = 64
MAX_COMMAS = 2**16  # bounds the values of a JSON body: an image has no comma, a long prompt has hundreds
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Value = str | int | float | bool


async def read_json(request: Request, *, query: bool = False) -> dict[str, Any]:
    """Return the JSON object in the body. Raises BodyRefused, BodyTypeUnknown or ParameterUnknown.

    `query`: a query string is allowed.
    """
    check_type(request, "application/json", query=query)
    body = await _read(request)
    return await off_loop(len(body), parse_json, body)


async def read_file(request: Request) -> bytes:
    """Return the body of a request that is the image file itself. Raises ImageTooLarge or ImageMissing."""
    data = await _read(request)
    check_file_size(len(data))
    if not data:
        raise ImageMissing("the body is empty; it must be an image file")
    return data


def is_file(request: Request) -> bool:
    """Return whether the Content-Type says that the body is an image file."""
    media_type = _media_type(request)
    return media_type.startswith("image/") or media_type in FILE_TYPES


def query_values(request: Request, known: Collection[str]) -> dict[str, Value]:
    """Return the parameters in the query string. Raises ParameterUnknown or ParameterInvalid."""
    values: dict[str, Value] = {}
    for name, text in request.query_params.multi_items():
        if name not in known:
            raise ParameterUnknown(f"{name[:80]!r} is not a parameter; the parameters are {', '.join(known)}")
        if name in values:
            raise ParameterInvalid(f"{name!r} is given twice")
        values[name] = form_value(name, text) if name in PARAMETERS else text
    return values


async def read_form(request: Request) -> list[tuple[str, str | bytes]]:
    """Return the form's fields as text and its files as bytes, in their order. Raises BodyRefused."""
    body = await _read(request)
    return await off_loop(max(len(body), SMALL_BYTES + 1), _parse_form, request.headers, body)


def check_type(request: Request, *known: str, query: bool = False) -> str:
    """Return the body's media type, one of `known`. Raises BodyTypeUnknown, or ParameterUnknown for a query string."""
    if request.query_params and not query:
        name = next(iter(request.query_params))
        raise ParameterUnknown(f"{name[:80]!r} is in the query string; parameters belong in the body")
    media_type = _media_type(request)
    if media_type not in known:
        raise BodyTypeUnknown(f"the Content-Type is {media_type[:80]!r}; it must be {' or '.join(known)}")
    return media_type


def parse_json(body: bytes) -> dict[str, Any]:
    """Return a JSON object: UTF-8, without duplicate keys, NaN or lone surrogates. Raises BodyRefused."""
    if body.count(b",") > MAX_COMMAS:
        raise BodyRefused(f"the body has more than {MAX_COMMAS} commas; a request needs a few dozen values")
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        if b"\\" in body and _SURROGATE.search(body):  # one byte is found ten times as fast
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise BodyRefused(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
    except UnicodeEncodeError:
        raise BodyRefused("the body contains a lone surrogate, which is half of a character") from None
    except RecursionError:
        raise BodyRefused("the body is nested too deeply") from None
    except ValueError as error:
        raise BodyRefused(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BodyRefused("the body must be a JSON object")
    return value


def form_value(name: str, text: str) -> Value:
    """Return a form's text in the type of the parameter `name`. The wire checks its range later."""
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


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{repeated[:80]!r} is given twice")
    return members


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


async def _read(request: Request) -> bytes:
    """Return the body. Unlike `Request.body`, the request does not keep it."""
    return b"".join([part async for part in request.stream()])


def _parse_form(headers: Headers, body: bytes) -> list[tuple[str, str | bytes]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), SMALL_BYTES):
            yield body[start : start + SMALL_BYTES]

    async def parse() -> list[tuple[str, str | bytes]]:
        form = await MultiPartParser(headers, chunks(), max_files=MAX_FIELDS, max_fields=MAX_FIELDS).parse()
        try:
            pairs = form.multi_items()
            return [(name, await value.read() if isinstance(value, UploadFile) else value) for name, value in pairs]
        finally:
            await form.close()

    try:
        return asyncio.run(parse())
    except (MultiPartException, KeyError) as error:  # KeyError: the Content-Type has no boundary
        raise BodyRefused(f"the body is not a valid multipart form: {error}") from None
