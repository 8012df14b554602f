"""Captions from servers, many requests in flight, driven by this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from captioner.bulk.item import Item, Outcome
from captioner.bulk.patience import RETRY_FOR_S, PatientClient
from captioner.bulk.sources import read
from captioner.client import DEFAULT_IN_FLIGHT, AsyncClient
from captioner.errors import typed

_READERS = 8


class LocalEngine:
    """captioner.bulk.item.Engine over `server`, one address or several separated by commas.

    At most `in_flight` images are held. Servers that are away are waited for, see PatientClient.
    """

    def __init__(
        self,
        server: str,
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        retry_for_s: float = RETRY_FOR_S,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._server, self._in_flight, self._retry_for_s = server, in_flight, retry_for_s
        self._parameters = dict(parameters or {})

    async def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Every item's outcome. `items` is read, and the images are, in threads."""
        loop = asyncio.get_running_loop()
        outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue(self._in_flight)
        iterator, turn = iter(items), asyncio.Lock()

        async def work() -> None:
            while True:
                async with turn:
                    item: Item | None = await loop.run_in_executor(threads, next, iterator, None)
                if item is None:
                    return
                await outcomes.put(await self._outcome(patient, item, threads))

        async def work_all() -> None:
            try:
                await asyncio.gather(*workers)
            finally:
                await outcomes.put(None)

        with ThreadPoolExecutor(_READERS, "images") as threads:
            async with AsyncClient(self._server) as client:
                patient = PatientClient(client, self._parameters, self._retry_for_s)
                workers = [asyncio.create_task(work()) for _ in range(self._in_flight)]
                all_work = asyncio.create_task(work_all())
                try:
                    while (outcome := await outcomes.get()) is not None:
                        yield outcome
                    await all_work
                finally:
                    for task in (*workers, all_work):
                        task.cancel()
                    await asyncio.gather(*workers, all_work, return_exceptions=True)

    async def _outcome(self, client: PatientClient, item: Item, threads: ThreadPoolExecutor) -> Outcome:
        try:
            data = await asyncio.get_running_loop().run_in_executor(threads, read, item)
            return Outcome(item, await client.caption(data), None)
        except Exception as error:  # one image's failure is its own
            return Outcome(item, None, typed(error))
