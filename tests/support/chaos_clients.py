"""Clients that must get one right caption for each request, or a typed refusal after its deadline, while parts die."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import httpx

from benchmarks.http_captions import Answer, Endpoint, Refused, caption
from benchmarks.marked_images import MarkedImage
from captioner.client import AsyncClient, RetryPolicy
from captioner.errors import CaptionerError

ENDPOINTS: tuple[Literal["grpc"] | Endpoint, ...] = ("grpc", "whole", "grpc", "events", "grpc", "chat")  # of clients
LOST_S = 15.0  # after its deadline, a request without an answer counts as lost
STALL_TIMEOUT_S = 15.0
OUTAGE_S = 600.0
EARLY_S = 0.1  # the server's clock of a deadline starts later than the client's, never earlier
# Refusals that another try may overcome. The others are answers to the request itself, and so mistakes here.
TRANSIENT = ("", "SERVER_BUSY", "SERVER_STOPPING", "SERVER_UNREACHABLE", "STREAM_STALLED")
DEADLINE = "DEADLINE_EXCEEDED"


@dataclass
class Outcome:
    """One request's end. `code` is "" for a caption; `fault` says what is wrong, "" if nothing is."""

    client: int
    endpoint: str
    sent: float  # time.monotonic()
    seconds: float = 0.0
    attempts: int = 0
    code: str = ""
    fault: str = ""
    cut: bool = False  # its deadline ended the caption


@dataclass
class Client:
    """One client: it has its own pictures and sends one request after the other."""

    number: int
    endpoint: str
    images: Sequence[MarkedImage]
    addresses: Sequence[str]  # gRPC, of the replicas
    url: str  # of the HTTP API
    parameters: dict[str, str]
    deadline_ms: int
    outcomes: list[Outcome] = field(default_factory=list)
    sent: int = 0

    async def run(self, until: asyncio.Event) -> None:
        """Send requests until the event is set, and one more."""
        rng = random.Random(self.number)
        policy = RetryPolicy(max_elapsed_s=OUTAGE_S)  # longer than any outage, so that only deadlines end requests
        async with (
            AsyncClient(self.addresses, retry=policy, stall_timeout_s=STALL_TIMEOUT_S) as client,
            httpx.AsyncClient(base_url=self.url, timeout=STALL_TIMEOUT_S) as http,
        ):
            is_last = False
            while not is_last:
                is_last = until.is_set()
                image = rng.choice(self.images)
                file = image.unseen(rng) if rng.random() < 0.5 else image.file
                outcome = Outcome(self.number, self.endpoint, time.monotonic())
                self.sent += 1
                request = (
                    self._by_grpc(client, image, file, outcome)
                    if self.endpoint == "grpc"
                    else self._by_http(http, image, file, outcome, rng)
                )
                try:
                    await asyncio.wait_for(request, self.deadline_ms / 1000 + LOST_S)
                except asyncio.TimeoutError:
                    outcome.fault = f"lost: no answer {LOST_S:g} s after its deadline"
                except Exception as error:
                    outcome.fault = f"untyped: {error!r}"
                outcome.seconds = time.monotonic() - outcome.sent
                early = outcome.seconds < self.deadline_ms / 1000 - EARLY_S
                if not outcome.fault and (outcome.code or outcome.cut) and early:
                    outcome.fault = f"{outcome.code or 'a cut caption'} before its deadline"
                self.outcomes.append(outcome)

    async def _by_grpc(self, client: AsyncClient, image: MarkedImage, file: bytes, outcome: Outcome) -> None:
        outcome.attempts, text = 1, ""
        try:
            stream = await client.stream(file, deadline_ms=self.deadline_ms, **self.parameters)
            async for piece in stream:
                text += piece
            assert stream.details is not None, "a caption without details"
            outcome.fault = image.mistake(text, asdict(stream.details))
            outcome.cut = stream.details.finish_reason == "deadline"
        except CaptionerError as error:
            outcome.code = error.code
            outcome.fault = self._misread(image, text)
            if error.code not in (*TRANSIENT, DEADLINE):
                outcome.fault = f"refused: {error.wire()}"

    async def _by_http(
        self, http: httpx.AsyncClient, image: MarkedImage, file: bytes, outcome: Outcome, rng: random.Random
    ) -> None:
        """Try until the deadline, as a good client does: after broken connections and 503, by Retry-After."""
        deadline = outcome.sent + self.deadline_ms / 1000
        while (left_s := deadline - time.monotonic()) > 0:
            outcome.attempts += 1
            answer, wait_s = Answer(), rng.uniform(0.1, 0.5)
            parameters = {"deadline_ms": max(round(left_s * 1000), 1), **self.parameters}
            try:
                await caption(http, self.endpoint, file, answer, **parameters)  # type: ignore[arg-type]
            except httpx.HTTPError:
                outcome.code = "SERVER_UNREACHABLE"
            except Refused as error:
                outcome.code = error.code or "SERVER_UNREACHABLE"  # a proxy's refusal has no code
                if error.code == DEADLINE:
                    return
                if error.code not in TRANSIENT:
                    outcome.fault = f"refused: {error}"
                    return
                wait_s = max(wait_s, error.retry_after_s or 0.0)
            else:
                outcome.code, outcome.fault = "", image.mistake(answer.text, answer.details)
                outcome.cut = bool(answer.details and answer.details["finish_reason"] == "deadline")
                if answer.ends != 1:
                    outcome.fault = f"doubled: {answer.ends} ends"
                return
            outcome.fault = self._misread(image, answer.text)
            if outcome.fault:
                return
            await asyncio.sleep(min(wait_s, max(deadline - time.monotonic(), 0)))
        outcome.code = outcome.code or DEADLINE

    def _misread(self, image: MarkedImage, text: str) -> str:
        """Return what is wrong with the text of a stream that broke: it must begin the caption."""
        return "" if image.caption.startswith(text) else f"read {text!r} of {image.caption!r} before the stream broke"
