"""One request and its response: the body is read first, and the endpoint is cancelled when its client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import CaptionerError, RequestCancelled, ServerBusy
from frontend.client_identity import set_current
from frontend.http_errors import BodyTooLarge, BodyTooSlow, error_response
from frontend.middleware.share import Share

MAX_BODY_S = 120.0  # until the whole body has arrived
MEMORY_FULL = "the bodies of the requests in flight take too much memory; retry later"
CANCELLED_BY = "captioner.cancelled_by"  # in the scope: the error for which the endpoint is cancelled


@dataclass(frozen=True)
class Limits:
    """The limits of one kind of routes. Each Share may belong to several kinds."""

    in_flight: Share  # requests that are being answered
    reading: Share  # requests whose body is arriving
    bytes: Share  # bodies, until their requests are answered
    max_body: int  # bytes
    hint: str = ""  # for a client whose body is too large
    is_awaited: bool = True  # when the process stops, it waits for these requests


class Exchange:
    """One request of `client`. It counts as in flight only once its body has arrived, so a slow body does not."""

    def __init__(self, app: ASGIApp, limits: Limits, client: str) -> None:
        self.app = app
        self.limits = limits
        self._client = client
        self._held = 0  # bytes
        self._response_started = False
        self._error: CaptionerError | None = None  # why the endpoint was cancelled
        self._scope: Scope = {}
        self._work: asyncio.Future[None] | None = None

    def cancel(self, error: CaptionerError) -> None:
        """End the request with an error."""
        self._error = self._scope[CANCELLED_BY] = error
        if self._work is not None:
            self._work.cancel()

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, call the endpoint and send its response, or cancel it and send an error."""
        self._scope = scope

        async def send_noted(message: Message) -> None:
            self._response_started = True
            await send(message)

        set_current(self._client)
        self._work = asyncio.ensure_future(self._answer(scope, receive, send_noted))
        try:
            await self._work
        except asyncio.CancelledError:
            if self._error is None:
                raise
        except CaptionerError as error:
            self._error = error
        finally:
            self._work.cancel()
            if self._held:
                self.limits.bytes.give(self._client, self._held)
        if self._error is None:
            return
        if not self._response_started:  # a client that disconnected does not read it, but the metrics count it
            await error_response(self._error)(scope, receive, send)
            return
        with suppress(Exception):  # such as a response with a Content-Length, which cannot end early
            await send({"type": "http.response.body", "body": b""})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self.limits
        length = Headers(scope=scope).get("content-length", "")
        declared = int(length) if length.isdecimal() else 0
        self._check_size(declared)
        self._check_room(declared)  # a request that would be refused later is refused before its body is read
        with _Holding(limits.reading, self._client, "request bodies are arriving"):
            messages = [{"type": "http.request", "body": await self._read(receive), "more_body": False}]

        async def receive_read() -> Message:
            if messages:
                return messages.pop()
            return await asyncio.Future()  # `watch` handles what the client does next

        with _Holding(limits.in_flight, self._client, "requests are in flight"):
            watch = asyncio.ensure_future(self._watch(receive))
            try:
                await self.app(scope, receive_read, send)
            finally:
                watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._work is not None and not self._work.done():
            self.cancel(RequestCancelled("the client disconnected"))

    async def _read(self, receive: Receive) -> bytes:
        deadline = time.monotonic() + MAX_BODY_S
        parts: list[bytes] = []
        while True:
            message = await _within(receive, deadline)
            if message["type"] == "http.disconnect":
                raise RequestCancelled("the client disconnected")
            part: bytes = message.get("body", b"")
            self._check_size(self._held + len(part))
            if part and not self.limits.bytes.take(self._client, len(part)):
                raise ServerBusy(MEMORY_FULL)
            self._held += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_body:
            raise BodyTooLarge(f"the body is larger than {self.limits.max_body / 2**20:.2g} MiB{self.limits.hint}")

    def _check_room(self, declared: int) -> None:
        if declared and not self.limits.bytes.has_room(self._client, declared):
            raise ServerBusy(MEMORY_FULL)
        if not self.limits.in_flight.has_room(self._client):
            raise ServerBusy(f"{self.limits.in_flight.total} requests are in flight; retry later")


class _Holding:
    """Take one of `share` for a client inside the block. Raises ServerBusy if none is left."""

    def __init__(self, share: Share, client: str, what: str) -> None:
        self._share = share
        self._client = client
        self._what = what

    def __enter__(self) -> None:
        if not self._share.take(self._client):
            raise ServerBusy(f"{self._share.total} {self._what}; retry later")

    def __exit__(self, *_: object) -> None:
        self._share.give(self._client)


async def _within(receive: Callable[[], Awaitable[Message]], deadline: float) -> Message:
    try:
        return await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {MAX_BODY_S:g} s") from None
