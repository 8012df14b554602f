"""A caption as one JSON body, or as a stream of events.

Each event is sent immediately. The decoding is cancelled when the response ends, for whatever reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from captioner.client import AsyncClient
from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError
from captioner.wire import Caption
from frontend.client_identity import client_parameters
from frontend.middleware.exchange import CANCELLED_BY

EVENT_STREAM = "text/event-stream"
MEDIA_TYPES = ("application/json", EVENT_STREAM)  # of a whole caption and of a stream
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies such as nginx must not buffer the events

WriteEvents = Callable[[AsyncCaptionStream, str], AsyncIterator[bytes]]  # (stream, its first text) → events
WriteError = Callable[[CaptionerError], bytes]  # → the last event of a stream that breaks
Whole = Callable[[Caption], dict[str, Any] | list[dict[str, Any]]]


async def respond(
    client: AsyncClient,
    image: bytes,
    prompt: str | None,
    parameters: Mapping[str, Any],
    *,
    whole: Whole,
    events: WriteEvents,
    error_event: WriteError,
    headers: Mapping[str, str] | None = None,
    media_type: str = EVENT_STREAM,
) -> Response:
    """Request a caption and return the response: the JSON of `whole` if `stream` is False, otherwise `events`.

    `media_type` is that of the events.
    """
    parameters = {**parameters, **client_parameters()}
    if parameters["stream"] is False:
        return JSONResponse(whole(await client.caption(image, prompt=prompt, **parameters)), headers=headers)
    stream = await client.stream(image, prompt=prompt, **parameters)
    return Events(stream, events(stream, await _first_text(stream)), error_event, headers, media_type)


def event(data: object, name: str | None = None) -> bytes:
    """Return one event with its data as JSON on one line."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class Events(Response):
    """A response of events made from `stream`. If it breaks, or the process stops, its last event is an error.

    It is not a StreamingResponse: if that is cancelled before its first event, it never runs its generator, so the
    stream would not be closed.
    """

    def __init__(
        self,
        stream: AsyncCaptionStream,
        events: AsyncIterator[bytes],
        error_event: WriteError,
        headers: Mapping[str, str] | None = None,
        media_type: str = EVENT_STREAM,
    ) -> None:
        super().__init__(headers=HEADERS | dict(headers or {}), media_type=media_type)
        del self.headers["content-length"]
        self._stream = stream
        self._events = events
        self._error_event = error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, then close the stream."""
        async with self._stream:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for each in self._events:
                    await send({"type": "http.response.body", "body": each, "more_body": True})
                last = b""
            except CaptionerError as error:
                last = self._error_event(error)
            except asyncio.CancelledError:
                if CANCELLED_BY not in scope:
                    raise
                last = self._error_event(scope[CANCELLED_BY])
        await send({"type": "http.response.body", "body": last})


async def _first_text(stream: AsyncCaptionStream) -> str:
    """Return the first piece of text. An error arrives with it, while the response can still have its own status."""
    try:
        return await anext(stream, "")
    except BaseException:
        stream.cancel()
        raise
