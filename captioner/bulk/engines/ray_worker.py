"""One Ray actor: image items in, captions out, by asking Triton servers."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioner.bulk.engines.base import RETRY_FOR_S
from captioner.bulk.sources.item import Item, load
from captioner.client import AsyncClient, RetryPolicy
from captioner.errors import typed
from captioner.wire import to_json


@dataclass(frozen=True)
class Work:
    """What an actor is constructed with; it is pickled and sent to the actor."""

    server: str  # one address, or several separated by commas
    workers: int
    in_flight: int  # images of one actor
    parameters: dict[str, Any]
    retry_for_s: float = RETRY_FOR_S
    read: Callable[[Item], bytes] = load


class Worker:
    """One actor. It answers a block of rows with a block of JSON texts, so that no class of ours is pickled back."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._in_flight = asyncio.Semaphore(work.in_flight)
        self._client = AsyncClient(work.server, retry=RetryPolicy(work.retry_for_s))

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = await asyncio.gather(*(self._answer(row) for row in batch["item"]))
        return {"number": batch["number"], "answer": np.array(answers, dtype=object)}

    async def _answer(self, row: bytes) -> str:
        try:
            async with self._in_flight:
                item: Item = pickle.loads(row)
                image = await asyncio.to_thread(self._work.read, item)
                caption = await self._client.caption(image, **item.parameters(self._work.parameters))
        except Exception as error:  # one image must not end the others
            return json.dumps({"error": typed(error).wire()})
        return json.dumps({"text": caption.text, "details": to_json(caption.details)})
