"""Users with marked images who caption, cancel, hang up, read slowly and send broken requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from random import Random
from types import TracebackType
from typing import Any

import httpx
from typing_extensions import Self

from benchmarks.http_captions import Answer, Endpoint, Refused, caption
from benchmarks.marked_images import MarkedImage
from captioner.client import AsyncClient
from captioner.errors import CaptionerError

# What a request does, by its share. The rest reads its caption.
SHARES = {"cancel": 0.10, "bad image": 0.05, "bad parameter": 0.05, "slow reader": 0.03, "disconnect": 0.03}
REFUSALS = {"bad image": ("IMAGE_FORMAT_UNKNOWN", "IMAGE_BROKEN"), "bad parameter": ("PARAMETER_INVALID",)}
BUSY = ("SERVER_BUSY",)  # random arrivals exceed the capacity for moments
ENDPOINTS: tuple[Endpoint, ...] = ("whole", "events", "chat")
PARAMETERS: dict[str, Any] = {"length": "medium"}  # of every request: short captions of two pictures are often equal
SLOW_S = 0.2  # between the pieces that a slow reader reads
CONNECTIONS = 256


class _HungUp(Exception):
    """The user has left."""


class Users:
    """The users of one server. `counts` by kind and end; `mistakes` must stay empty."""

    def __init__(self, grpc: str, page: str, images: Sequence[MarkedImage]) -> None:
        self.counts: Counter[str] = Counter()
        self.mistakes: list[str] = []
        self._images = images
        self._client = AsyncClient(grpc)
        self._http = httpx.AsyncClient(base_url=page, timeout=60, limits=httpx.Limits(max_connections=CONNECTIONS))

    async def one(self, rng: Random) -> None:
        """Send one request of a random user and judge its answer."""
        image, kind = rng.choice(self._images), _kind(rng)
        file = image.unseen(rng) if rng.random() < 0.5 else image.file
        if kind == "bad image":
            file = file[: len(file) // 2] if rng.random() < 0.5 else b"no image" + rng.randbytes(64)
        parameters = PARAMETERS | ({"max_tokens": 0} if kind == "bad parameter" else {})
        by_http = rng.random() < 0.5 or kind == "bad parameter"  # the gRPC client refuses bad parameters itself
        answer, ended = Answer(), "captioned"
        try:
            if by_http:
                await self._by_http(kind, rng.choice(ENDPOINTS), file, answer, parameters)
            else:
                await self._by_grpc(kind, file, answer)
        except _HungUp:
            ended = "hung up"
        except (CaptionerError, Refused) as error:
            ended = error.code
        except Exception as error:
            ended = repr(error)
        self.counts[f"{kind}: {ended}"] += 1
        self._judge(kind, ended, image, answer)

    def _judge(self, kind: str, ended: str, image: MarkedImage, answer: Answer) -> None:
        expected = REFUSALS.get(kind, ("captioned", "hung up"))
        if ended not in (*expected, *BUSY):
            self.mistakes.append(f"{kind}: {ended}")
        if ended == "captioned" and (wrong := image.mistake(answer.text, answer.details)):
            self.mistakes.append(f"{kind}: {wrong}")
        if not image.caption.startswith(answer.text):
            self.mistakes.append(f"{kind}: read {answer.text!r} of {image.caption!r}")

    async def _by_grpc(self, kind: str, file: bytes, answer: Answer) -> None:
        async with await self._client.stream(file, **PARAMETERS) as stream:
            async for piece in stream:
                answer.text += piece
                if kind in ("cancel", "disconnect"):
                    raise _HungUp
                await asyncio.sleep(SLOW_S if kind == "slow reader" else 0)
            if stream.details is not None:
                answer.details = asdict(stream.details)

    async def _by_http(
        self, kind: str, endpoint: Endpoint, file: bytes, answer: Answer, parameters: dict[str, Any]
    ) -> None:
        async def on_piece(_: Answer) -> None:
            if kind in ("cancel", "disconnect"):
                raise _HungUp
            await asyncio.sleep(SLOW_S if kind == "slow reader" else 0)

        if kind == "disconnect" or (kind == "cancel" and endpoint == "whole"):  # before there is an answer
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(caption(self._http, endpoint, file, answer, **parameters), SLOW_S / 4)
                return
            answer.text = ""
            raise _HungUp
        await caption(self._http, endpoint, file, answer, on_piece, **parameters)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()
        await self._http.aclose()


def _kind(rng: Random) -> str:
    left = rng.random()
    for kind, share in SHARES.items():
        left -= share
        if left < 0:
            return kind
    return "caption"
