"""POST /v1/captions: an image as a form's file or in JSON, with the wire's parameters; whole or as it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from captioner.client import AsyncClient
from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError, ImageMissing, ParameterInvalid, ParameterUnknown
from captioner.image.formats import check_file_size
from captioner.wire import PARAMETERS, Caption
from frontend.api.openapi import answers, captions_body
from frontend.api.request_body import check_type, form_value, parse_json, read_form
from frontend.api.responses import MEDIA_TYPES, event, respond
from frontend.http_errors import refusal_body
from frontend.remote_images import RemoteImages

NAMES = tuple(name for name in PARAMETERS if name != "describe")  # the model's card is at /v1/models


@dataclass(frozen=True)
class CaptionsRequest:
    """What to caption and how. `image` is a file's bytes, or text that is or names one."""

    image: bytes | str
    prompt: str | None
    parameters: dict[str, Any]


def captions(client: AsyncClient, images: RemoteImages) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post(
        "/v1/captions",
        openapi_extra=captions_body(NAMES),
        responses=answers("The caption, or its events", *MEDIA_TYPES),
    )
    async def caption(request: Request) -> Response:
        """An image's caption, and how it came to be."""
        asked = await read_caption(request)
        image = asked.image if isinstance(asked.image, bytes) else await images.read(asked.image)
        parameters = dict(asked.parameters)
        if parameters.get("stream") is None:
            parameters["stream"] = "text/event-stream" in request.headers.get("accept", "")
        return await respond(client, image, asked.prompt, parameters, whole=caption_body, events=caption_events)

    return router


async def read_caption(request: Request) -> CaptionsRequest:
    """The request, from JSON or a form; what is unknown or there twice is refused by name."""
    body = await request.body()
    if check_type(request, "application/json", "multipart/form-data") == "application/json":
        return caption_request(parse_json(body))
    return await _from_form(request)


def caption_request(values: dict[str, Any]) -> CaptionsRequest:
    """The request that a JSON object makes."""
    image, prompt = values.get("image"), values.get("prompt")
    for name in values:
        if name not in ("image", "prompt", *NAMES):
            raise ParameterUnknown(
                f"{name[:80]!r} is no parameter; the parameters are image, prompt, {', '.join(NAMES)}"
            )
    if image is None or image == "":
        raise ImageMissing("the request has no image")
    for name, value in (("image", image), ("prompt", prompt)):
        if not isinstance(value, str | None):
            raise ParameterInvalid(f"{name} is no text; it must be text")
    return CaptionsRequest(image, prompt, {name: values[name] for name in NAMES if name in values})


async def _from_form(request: Request) -> CaptionsRequest:
    form = await read_form(request)
    try:
        values: dict[str, Any] = {}
        data: bytes | None = None
        for name, value in form.multi_items():
            if name in values:
                raise ParameterInvalid(f"{name[:80]!r} is there twice")
            if isinstance(value, UploadFile):
                if name != "image":
                    raise ParameterUnknown(f"{name[:80]!r} is no file that is read here; the file is image")
                check_file_size(value.size or 0)
                data = await value.read()
            values[name] = value if isinstance(value, str) else "a file"
            if name in NAMES and isinstance(value, str):
                values[name] = form_value(name, value)
    finally:
        await form.close()
    asked = caption_request(values)
    return asked if data is None else CaptionsRequest(data, asked.prompt, asked.parameters)


def caption_body(caption: Caption) -> dict[str, Any]:
    """The caption and its details."""
    return {"caption": caption.text, "details": asdict(caption.details)}


async def caption_events(stream: AsyncCaptionStream, first: str) -> AsyncIterator[bytes]:
    """`text` for each piece, then `done` with the details; `error` where the writing breaks off."""
    try:
        if first:
            yield event({"text": first}, "text")
        async for text in stream:
            yield event({"text": text}, "text")
        if stream.details is None:
            raise CaptionerError("the stream ended without details")
        yield event({"details": asdict(stream.details)}, "done")
    except CaptionerError as error:
        yield event({name: refusal_body(error)["error"][name] for name in ("code", "message")}, "error")
