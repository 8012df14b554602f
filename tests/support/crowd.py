"""A crowd of requests by one client, and the time that another client's single request takes meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Send = Callable[[int], Awaitable[float]]  # number → ms from sending to the caption, without the wait in the queue


@dataclass(frozen=True)
class Fairness:
    """Times in ms. `caption_ms`: the median caption of the crowd, without its wait. `single_ms`: the other client's."""

    caption_ms: float
    single_ms: tuple[float, ...]
    answered: int  # requests of the crowd before the last single one was

    @property
    def delay(self) -> float:
        """Return how much the median single request was delayed, in captions' time."""
        return statistics.median(self.single_ms) / self.caption_ms - 1


async def beside_a_crowd(crowd: Send, single: Send, requests: int, singles: int, settle_s: float) -> Fairness:
    """Queue `requests` of the crowd, then send up to `singles` single ones, one after the other, while the crowd waits.

    The crowd's requests that are left are cancelled.
    """
    tasks = [asyncio.create_task(_run(crowd, number)) for number in range(requests)]
    try:
        await asyncio.sleep(settle_s)
        single_ms: list[float] = []
        while len(single_ms) < singles and not (single_ms and all(task.done() for task in tasks)):
            began = time.perf_counter()
            await single(requests + len(single_ms))
            single_ms.append((time.perf_counter() - began) * 1000)
        done = [task.result() for task in tasks if task.done()]
        assert done, "no request of the crowd was answered"
        return Fairness(statistics.median(done), tuple(single_ms), len(done))
    finally:
        await _cancel(tasks)


async def _run(send: Send, number: int) -> float:
    return await send(number)


async def _cancel(tasks: Sequence[asyncio.Task[float]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
