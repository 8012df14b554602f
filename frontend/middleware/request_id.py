"""The id of each request, by which its traces in the page's process, the client and Triton are found.

A client may send one in `x-request-id`. Every response has it.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.client_identity import set_request_id

HEADER = "x-request-id"
MAX_CHARACTERS = 128


class RequestIdMiddleware:
    """Takes or draws the id of a request, and sends it with the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        is_valid = 0 < len(given) <= MAX_CHARACTERS and given.isascii() and given.isprintable()
        request_id = given if is_valid else uuid.uuid4().hex
        set_request_id(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        return await self.app(scope, receive, send_with_id)
