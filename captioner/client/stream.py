"""One caption stream: requests fail over and are retried, and text that was already yielded is not repeated."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

from typing_extensions import Self

from captioner import wire
from captioner.client.replica import Replica, ResponseStream
from captioner.client.retry import Outage, Retries, is_transient
from captioner.client.shrink import with_original_size
from captioner.errors import CaptionerError, CaptionsDiffer, DeadlineExceeded, RequestCancelled
from captioner.wire import Details


class AsyncCaptionStream:
    """A caption in progress. Iterate for its text; `details` is set when the iteration ends."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        inputs: Mapping[str, bytes | str | None],
        parameters: Mapping[str, object],
        outage: Outage,
    ) -> None:
        self.details: Details | None = None
        self._all_replicas = list(replicas)
        self._replicas = list(replicas)  # not tried yet in this attempt
        self._retries = Retries(outage)
        self._inputs = inputs
        self._parameters = parameters
        self._began = time.monotonic()
        self._responses: ResponseStream | None = None
        self._wait_s = 0.0  # before the next attempt
        self._cancelled = asyncio.Event()
        self._yielded = ""  # text that the caller has read
        self._received = ""  # text from the current replica

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            try:
                outputs = await self._read()
            except CaptionerError as error:
                self._fail_over(error)
                continue
            if outputs is None:
                raise StopAsyncIteration
            if outputs.get(wire.DETAILS.name):
                self._retries.progress()
                self.details = with_original_size(
                    Details.from_json(outputs[wire.DETAILS.name]), self._inputs.get(wire.IMAGE.name)
                )
            if new := self._new_text(outputs.get(wire.CAPTION.name, "")):
                self._retries.progress()
                return new

    async def start(self) -> None:
        """Send the request now, so that the server works before the first read."""
        try:
            self._responses = await self._send()
        except CaptionerError as error:
            self._fail_over(error)

    async def _read(self) -> dict[str, str] | None:
        if self._responses is None:
            await self._back_off()
            self._responses = await self._send()
        return await self._responses.read()

    async def _back_off(self) -> None:
        """Wait before the next attempt. `cancel` ends the wait."""
        wait_s, self._wait_s = self._wait_s, 0.0
        if wait_s:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._cancelled.wait(), min(wait_s, max(self._left_s(), 0)))

    async def _send(self) -> ResponseStream:
        if self._cancelled.is_set():
            raise RequestCancelled("the caption was cancelled")
        self._replicas.sort(key=lambda replica: replica.order)
        parameters, deadline_ms = self._parameters, self._parameters.get("deadline_ms")
        left_s = self._left_s()
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline of {deadline_ms} ms passed while replicas failed")
        if deadline_ms is not None:
            parameters = {**parameters, "deadline_ms": max(round(left_s * 1000), 1)}
        responses = await self._replicas[0].send(self._inputs, parameters, None if deadline_ms is None else left_s)
        if self._cancelled.is_set():  # `cancel` was called while the request was sent
            responses.cancel()
        return responses

    def _left_s(self) -> float:
        """Return the seconds until the request's deadline; infinity without one."""
        deadline_ms = self._parameters.get("deadline_ms")
        return self._began + deadline_ms / 1000 - time.monotonic() if isinstance(deadline_ms, int) else math.inf

    def _fail_over(self, error: CaptionerError) -> None:
        """Choose the next replica, or all replicas again after a wait. Raises `error` if neither can help."""
        self._responses, self._received = None, ""
        if self._cancelled.is_set() or not is_transient(error):
            raise error
        self._replicas.pop(0).mark_failed()
        if self._replicas:
            return
        self._replicas = list(self._all_replicas)
        wait_s = self._retries.wait_s()
        if wait_s is None:
            raise error
        self._wait_s = wait_s

    def _new_text(self, text: str) -> str:
        """Return the part of `text` that was not yielded yet: an earlier replica may have sent the beginning."""
        self._received += text
        common = min(len(self._received), len(self._yielded))
        differs = self._received[:common] != self._yielded[:common]
        if differs or (self.details and len(self._received) < len(self._yielded)):
            self.cancel()
            raise CaptionsDiffer("the stream broke, and the next replica generates another caption")
        new = self._received[len(self._yielded) :]
        self._yielded += new
        return new

    def cancel(self) -> None:
        """Stop decoding on the server. After the end of the caption this does nothing."""
        self._cancelled.set()
        if self._responses is not None:
            self._responses.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
