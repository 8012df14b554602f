"""The concurrency of an engine that runs in this process: read images in threads, keep many captions in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from captioner.bulk.engines.base import Outcome
from captioner.bulk.sources.item import Item, load
from captioner.errors import typed
from captioner.wire import Caption

_READERS = 8  # threads


async def caption_all(
    items: Iterable[Item], in_flight: int, caption: Callable[[bytes, Item], Awaitable[Caption]]
) -> AsyncGenerator[Outcome, None]:
    """Yield the outcome of every item; at most `in_flight` images are held in memory.

    `items` is iterated, and the files are read, in threads. What `caption` raises becomes the item's error.
    """
    loop = asyncio.get_running_loop()
    outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue(in_flight)
    iterator, turn = iter(items), asyncio.Lock()

    async def one(item: Item) -> Outcome:
        try:
            data = await loop.run_in_executor(threads, load, item)
            return Outcome(item, await caption(data, item), None)
        except Exception as error:  # one image must not end the others
            return Outcome(item, None, typed(error))

    async def work() -> None:
        while True:
            async with turn:
                item: Item | None = await loop.run_in_executor(threads, next, iterator, None)
            if item is None:
                return
            await outcomes.put(await one(item))

    async def work_all() -> None:
        try:
            await asyncio.gather(*workers)
        finally:
            await outcomes.put(None)

    with ThreadPoolExecutor(_READERS, "images") as threads:
        workers = [asyncio.create_task(work()) for _ in range(in_flight)]
        all_work = asyncio.create_task(work_all())
        try:
            while (outcome := await outcomes.get()) is not None:
                yield outcome
            await all_work
        finally:
            for task in (*workers, all_work):
                task.cancel()
            await asyncio.gather(*workers, all_work, return_exceptions=True)
