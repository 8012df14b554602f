"""POST /v1/captions: an image as a file, in a form or in JSON; the caption whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError, ImageMissing, ParameterInvalid, ParameterUnknown
from captioner.image.limits import check_file_size
from captioner.wire import PARAMETERS, Caption
from frontend.api.backend import Backend
from frontend.api.openapi import captions_body, responses
from frontend.api.request_body import (
    check_type,
    form_value,
    is_file,
    query_values,
    read_file,
    read_form,
    read_json,
)
from frontend.api.responses import MEDIA_TYPES, event, respond
from frontend.client_identity import CLIENT_ID
from frontend.http_errors import error_body

# The model's card is at /v1/models, and clients may not choose whose turns they take.
NAMES = tuple(name for name in PARAMETERS if name not in ("describe", CLIENT_ID))


@dataclass(frozen=True)
class CaptionsRequest:
    """A parsed request. `image` is the bytes of a file, or text: base64, a data URL or a URL."""

    image: bytes | str
    prompt: str | None
    parameters: dict[str, Any]


def add_captions(router: APIRouter, backend: Backend) -> None:
    """Add the endpoint to the API's router."""

    @router.post(
        "/v1/captions",
        name="captions",
        openapi_extra=captions_body(NAMES),
        responses=responses("The caption, or its events", *MEDIA_TYPES),
    )
    async def caption(request: Request) -> Response:
        """Caption an image. The response has the caption and its details."""
        return await answer(request, backend)


async def answer(request: Request, backend: Backend) -> Response:
    """Return the response to a request in any form of /v1/captions."""
    parsed = await read_request(request)
    image = parsed.image if isinstance(parsed.image, bytes) else await backend.images.read(parsed.image)
    prompt, parameters = parsed.prompt, dict(parsed.parameters)
    del parsed  # the image as text is not needed while the caption is generated
    if parameters.get("stream") is None:
        parameters["stream"] = "text/event-stream" in request.headers.get("accept", "")
    return await respond(
        backend.client,
        image,
        prompt,
        parameters,
        whole=caption_body,
        events=caption_events,
        error_event=caption_error,
    )


async def read_request(request: Request) -> CaptionsRequest:
    """Parse a request. Raises CaptionerError, which names an unknown or repeated parameter.

    If the body is an image file, the parameters are in the query string.
    """
    if is_file(request):
        parsed = captions_request({"image": "a file", **query_values(request, ("prompt", *NAMES))})
        return CaptionsRequest(await read_file(request), parsed.prompt, parsed.parameters)
    if check_type(request, "application/json", "multipart/form-data") == "application/json":
        return captions_request(await read_json(request))
    return _from_form(await read_form(request))


def captions_request(values: dict[str, Any]) -> CaptionsRequest:
    """Return the request for a JSON object. Raises ParameterUnknown, ParameterInvalid or ImageMissing."""
    image, prompt = values.get("image"), values.get("prompt")
    for name, value in values.items():
        if value is not None and name not in ("image", "prompt", *NAMES):
            raise ParameterUnknown(
                f"{name[:80]!r} is not a parameter; the parameters are image, prompt, {', '.join(NAMES)}"
            )
    if image is None or image == "":
        raise ImageMissing("the request has no image")
    for name, text in (("image", image), ("prompt", prompt)):
        if not isinstance(text, str | None):
            raise ParameterInvalid(f"{name} is not text; it must be text")
    return CaptionsRequest(image, prompt, {name: values[name] for name in NAMES if name in values})


def _from_form(pairs: list[tuple[str, str | bytes]]) -> CaptionsRequest:
    values: dict[str, Any] = {}
    data: bytes | None = None
    for name, value in pairs:
        if name in values:
            raise ParameterInvalid(f"{name[:80]!r} is given twice")
        if isinstance(value, bytes):
            if name != "image":
                raise ParameterUnknown(f"{name[:80]!r} is not a known file field; the file field is image")
            check_file_size(len(value))
            data = value
        values[name] = value if isinstance(value, str) else "a file"
        if name in NAMES and isinstance(value, str):
            values[name] = form_value(name, value)
    parsed = captions_request(values)
    return parsed if data is None else CaptionsRequest(data, parsed.prompt, parsed.parameters)


def caption_body(caption: Caption) -> dict[str, Any]:
    """Return the JSON body of a whole caption."""
    return {"caption": caption.text, "details": asdict(caption.details)}


async def caption_events(stream: AsyncCaptionStream, first: str) -> AsyncIterator[bytes]:
    """Yield a `text` event for each piece, then `done` with the details."""
    if first:
        yield event({"text": first}, "text")
    async for text in stream:
        yield event({"text": text}, "text")
    if stream.details is None:
        raise CaptionerError("the stream ended without details")
    yield event({"details": asdict(stream.details)}, "done")


def caption_error(error: CaptionerError) -> bytes:
    """Return the `error` event."""
    return event({name: error_body(error)["error"][name] for name in ("code", "message")}, "error")
