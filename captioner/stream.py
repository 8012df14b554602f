"""One caption as it is written, by whichever replica answers: what the user has read is not said again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence

from typing_extensions import Self

from captioner import wire
from captioner.errors import CaptionerError, CaptionsDiffer, DeadlineExceeded, RequestCancelled
from captioner.replica import Answer, Replica
from captioner.wire import Details


class AsyncCaptionStream:
    """One caption being written: iterate for its text; `details` is there once the iteration has ended."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        inputs: Mapping[str, bytes | str | None],
        parameters: Mapping[str, object],
    ) -> None:
        self.details: Details | None = None
        self._replicas = list(replicas)  # still to be asked
        self._inputs = inputs
        self._parameters = parameters
        self._began = time.monotonic()
        self._answer: Answer | None = None
        self._cancelled = False
        self._said = ""  # what the user has read
        self._repeated = ""  # what the replica in use has said

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            try:
                outputs = await self._read()
            except CaptionerError as error:
                self._turn_from(error)
                continue
            if outputs is None:
                raise StopAsyncIteration
            if outputs.get(wire.DETAILS.name):
                self.details = Details.from_json(outputs[wire.DETAILS.name])
            if new := self._unread(outputs.get(wire.CAPTION.name, "")):
                return new

    async def start(self) -> None:
        """Sends the request, so that the server works while nobody reads yet."""
        try:
            self._answer = await self._ask()
        except CaptionerError as error:
            self._turn_from(error)

    async def _read(self) -> dict[str, str] | None:
        if self._answer is None:
            self._answer = await self._ask()
        return await self._answer.read()

    async def _ask(self) -> Answer:
        self._check_wanted()
        self._replicas.sort(key=lambda replica: replica.order)
        parameters, left_s = self._parameters, None
        deadline_ms = parameters.get("deadline_ms")
        if isinstance(deadline_ms, int):
            left_s = deadline_ms / 1000 - (time.monotonic() - self._began)
            if left_s <= 0:
                raise DeadlineExceeded(f"the deadline of {deadline_ms} ms passed while replicas failed")
            parameters = {**parameters, "deadline_ms": max(round(left_s * 1000), 1)}
        answer = await self._replicas[0].ask(self._inputs, parameters, left_s)
        if self._cancelled:  # while the request was being sent
            answer.cancel()
        return answer

    def _check_wanted(self) -> None:
        if self._cancelled:
            raise RequestCancelled("the caption was cancelled")

    def _turn_from(self, error: CaptionerError) -> None:
        """On to the next replica where that may help; raises `error` where it cannot."""
        theirs = error.status == "UNAVAILABLE" and not isinstance(error, DeadlineExceeded | CaptionsDiffer)
        if theirs:
            self._replicas.pop(0).rest()
        if self._cancelled or not theirs or not self._replicas:
            raise error
        self._answer, self._repeated = None, ""

    def _unread(self, text: str) -> str:
        """What of `text` is new to the user, who may have read its beginning from another replica."""
        self._repeated += text
        common = min(len(self._repeated), len(self._said))
        if self._repeated[:common] != self._said[:common] or (self.details and len(self._repeated) < len(self._said)):
            self.cancel()
            raise CaptionsDiffer("the stream broke, and the replica asked in its place writes another caption")
        new = self._repeated[len(self._said) :]
        self._said += new
        return new

    def cancel(self) -> None:
        """Ends the decoding on the server; calling it after the end does nothing."""
        self._cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
