"""One of Ray's actors: images in, captions out, by asking servers or by a model of its own."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.bulk.item import Item
from captioner.bulk.patience import RETRY_FOR_S, PatientClient
from captioner.bulk.sources import read
from captioner.client import AsyncClient, Caption
from captioner.errors import typed
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
        if work.server is not None:
            self._client = PatientClient(AsyncClient(work.server), work.parameters, work.retry_for_s)
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
        return await self._client.caption(image)
