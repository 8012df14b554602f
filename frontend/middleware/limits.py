"""Request limits of the API: body size and time, concurrency, cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import CaptionerError, RequestCancelled, ServerBusy
from captioner.wire import MAX_IMAGE_BYTES
from frontend.http_errors import RETRY_AFTER_S, BodyTooLarge, BodyTooSlow, error_response
from frontend.middleware.asgi import match_route

MAX_BODY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 2**20  # an image as base64, and 1 MiB for the other fields
MAX_BODY_S = 120.0  # until the whole body has arrived


class LimitsMiddleware:
    """ASGI middleware that limits requests to `routes`. Other requests pass through."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], max_in_flight: int) -> None:
        self.app = app
        self._routes = routes
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if match_route(self._routes, scope) is None:
            return await self.app(scope, receive, send)
        if self._in_flight >= self._max_in_flight:
            error = ServerBusy(f"{self._in_flight} requests are in flight; retry in {RETRY_AFTER_S} s")
            return await error_response(error)(scope, receive, send)
        self._in_flight += 1
        try:
            await Exchange(self.app).run(scope, receive, send)
        finally:
            self._in_flight -= 1


class Exchange:
    """One request and its response.

    A body over the limits, or a client that disconnects, cancels the endpoint. The response is sent from here, so it
    does not depend on how the endpoint reads its body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._size = 0
        self._body_read = False
        self._response_started = False
        self._error: CaptionerError | None = None  # why the endpoint was cancelled
        self._watch: asyncio.Task[None] | None = None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint and send its response, or cancel it and send an error."""
        deadline = time.monotonic() + MAX_BODY_S

        def cancel(error: CaptionerError) -> None:
            self._error = error
            work.cancel()

        async def watch_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            cancel(RequestCancelled("the client disconnected"))

        async def receive_limited() -> Message:
            until_cancelled: asyncio.Future[Message] = asyncio.Future()
            if self._body_read:
                return await until_cancelled
            try:
                message = await self._receive_body(receive, deadline)
            except CaptionerError as error:
                cancel(error)
                return await until_cancelled
            if not message.get("more_body", False):
                self._body_read = True
                self._watch = asyncio.ensure_future(watch_client())
            return message

        async def send_noted(message: Message) -> None:
            self._response_started = True
            await send(message)

        work = asyncio.ensure_future(self.app(scope, receive_limited, send_noted))
        try:
            await work
        except asyncio.CancelledError:
            if self._error is None:
                raise
            if not self._response_started:  # a client that disconnected does not read it, but the metrics count it
                await error_response(self._error)(scope, receive, send)
        finally:
            work.cancel()
            if self._watch is not None:
                self._watch.cancel()

    async def _receive_body(self, receive: Receive, deadline: float) -> Message:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise BodyTooSlow(f"the body did not arrive within {MAX_BODY_S:g} s") from None
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the client disconnected")
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES:
            limits = f"{MAX_BODY_BYTES / 2**20:.1f} MiB; the limit of an image is {MAX_IMAGE_BYTES >> 20} MiB"
            raise BodyTooLarge(f"the body is larger than {limits}")
        return message
