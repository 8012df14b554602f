"""One of Ray's actors: images in, captions out, by asking servers or by a model of its own."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.bulk.item import Item
from captioner.bulk.local import RETRY_FOR_S
from captioner.bulk.sources import read
from captioner.client import AsyncClient, Caption
from captioner.errors import CaptionerError, typed
from captioner.wire import to_json


@dataclass(frozen=True)
class Work:
    """What an actor is to do; it travels to it."""

    server: str | None
    repository: Path | None
    workers: int
    in_flight: int  # of one actor
    parameters: dict[str, Any]
    retry_for_s: float = RETRY_FOR_S
    read: Callable[[Item], bytes] = read


class Worker:
    """One actor: it answers a block of rows with a block of JSON texts, which need none of our classes to travel."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._places = asyncio.Semaphore(work.in_flight)
        self._last_caption = time.monotonic()
        if work.server is not None:
            self._client = AsyncClient(work.server)
        else:
            from captioner.backend_folder import usable_cores
            from captioner.bulk.in_worker import InWorker

            assert work.repository is not None
            self._model = InWorker(work.repository, work.in_flight, max(1, usable_cores() // work.workers))

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = await asyncio.gather(*(self._answer(row) for row in batch["item"]))
        return {"number": batch["number"], "answer": np.array(answers, dtype=object)}

    async def _answer(self, row: bytes) -> str:
        try:
            async with self._places:
                image = await asyncio.to_thread(self._work.read, pickle.loads(row))
                caption = await self._caption(image)
        except Exception as error:  # one bad image never ends the others
            return json.dumps({"error": typed(error).wire()})
        return json.dumps({"text": caption.text, "details": to_json(caption.details)})

    async def _caption(self, image: bytes) -> Caption:
        if self._work.repository is not None:
            return await asyncio.wrap_future(self._model.submit(image, self._work.parameters))
        wait_s = 0.1
        while True:
            try:
                caption = await self._client.caption(image, **self._work.parameters)
            except CaptionerError as error:
                waited_s = time.monotonic() - self._last_caption  # by all: who comes later is not waited for anew
                if error.status != "UNAVAILABLE" or waited_s > self._work.retry_for_s:
                    raise
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
                wait_s = min(2 * wait_s, 5.0)
            else:
                self._last_caption = time.monotonic()
                return caption
