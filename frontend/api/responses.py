"""A caption as one JSON body, or as server-sent events.

Each event is sent at once; the decoding ends with the response, however that ends.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from captioner.client import AsyncClient
from captioner.client.stream import AsyncCaptionStream
from captioner.wire import Caption

MEDIA_TYPES = ("application/json", "text/event-stream")  # of a caption, whole and as it is written
# A proxy such as nginx would gather the pieces.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

WriteEvents = Callable[[AsyncCaptionStream, str], AsyncIterator[bytes]]  # of a stream and its first text


async def respond(
    client: AsyncClient,
    image: bytes,
    prompt: str | None,
    parameters: Mapping[str, Any],
    *,
    whole: Callable[[Caption], dict[str, Any]],
    events: WriteEvents,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Asks for a caption and answers with `whole` of it where `stream` is False, with its `events` otherwise."""
    if parameters["stream"] is False:
        return JSONResponse(whole(await client.caption(image, prompt=prompt, **parameters)), headers=headers)
    stream = await client.stream(image, prompt=prompt, **parameters)
    return Events(stream, events(stream, await _first_text(stream)), headers)


def event(data: object, name: str | None = None) -> bytes:
    """One event: JSON on one line."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class Events(Response):
    """`events` made of `stream`. Not a StreamingResponse: one cancelled early would never touch its generator."""

    media_type = "text/event-stream"

    def __init__(
        self, stream: AsyncCaptionStream, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers=HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self._stream = stream
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        async with self._stream:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for each in self._events:
                await send({"type": "http.response.body", "body": each, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _first_text(stream: AsyncCaptionStream) -> str:
    """The first piece, with which refusals come, so that they can still have a status of their own."""
    try:
        return await anext(stream, "")
    except BaseException:
        stream.cancel()
        raise
