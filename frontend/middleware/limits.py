"""How much is held for how many: bytes of a body, requests at once, and nothing for a client that has left."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import RequestCancelled, ServerBusy
from captioner.wire import MAX_IMAGE_BYTES
from frontend.http_errors import RETRY_AFTER_S, BodyTooLarge, BodyTooSlow, refusal
from frontend.middleware.asgi import path_of

MAX_BODY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 2**20  # an image as base64, and the words around it
MAX_BODY_S = 120.0


class LimitsMiddleware:
    """ASGI middleware around everything under /v1/."""

    def __init__(self, app: ASGIApp, max_in_flight: int) -> None:
        self.app = app
        self.max_in_flight = max_in_flight
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not path_of(scope).startswith("/v1/"):
            return await self.app(scope, receive, send)
        if self.in_flight >= self.max_in_flight:
            error = ServerBusy(f"{self.in_flight} requests are being answered here; retry in {RETRY_AFTER_S} s")
            return await refusal(error)(scope, receive, send)
        self.in_flight += 1
        try:
            await Exchange(self.app).run(scope, receive, send)
        finally:
            self.in_flight -= 1


class Exchange:
    """One request: its body is counted while it is read; once its client has left, its work is cancelled."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._left = asyncio.Event()
        self._size = 0
        self._read = False
        self._started = False
        self._watch: asyncio.Task[None] | None = None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or ends early."""
        latest = time.monotonic() + MAX_BODY_S

        async def watch_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._left.set()
            work.cancel()

        async def receive_bounded() -> Message:
            if self._read:
                await self._left.wait()
                return {"type": "http.disconnect"}
            message = await self._receive_part(receive, latest)
            if not message.get("more_body", False):
                self._read = True
                self._watch = asyncio.ensure_future(watch_client())
            return message

        async def send_noted(message: Message) -> None:
            self._started = True
            await send(message)

        work = asyncio.ensure_future(self.app(scope, receive_bounded, send_noted))
        try:
            await work
        except asyncio.CancelledError:
            if not self._left.is_set():
                raise
            if not self._started:  # nobody reads it, but it is counted
                await refusal(RequestCancelled("the client left"))(scope, receive, send)
        finally:
            work.cancel()
            if self._watch is not None:
                self._watch.cancel()

    async def _receive_part(self, receive: Receive, latest: float) -> Message:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, latest - time.monotonic()))
        except asyncio.TimeoutError:
            raise BodyTooSlow(f"the body was not here after {MAX_BODY_S:g} s") from None
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the client left")
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES:
            limits = f"{MAX_BODY_BYTES / 2**20:.1f} MiB; an image may have {MAX_IMAGE_BYTES >> 20} MiB"
            raise BodyTooLarge(f"the body is larger than {limits}")
        return message
