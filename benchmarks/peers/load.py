"""Arrivals of requests, and what became of them.

`first_ms` is from sending a request to its first text, `total_ms` to its end. Requests that were still open when a
round was cut count with the time that they had waited, so a slow system's percentiles are lower bounds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from benchmarks.measurement import percentile
from benchmarks.peers.requests import Ask

SEED = 0
LEAVES_AFTER_S = 0.5  # the longest patience of a client that cancels
RECENT = 32  # a repeated image is one of this many


@dataclass(frozen=True)
class Load:
    """A closed loop of `concurrency` clients, or `rate` random arrivals per second; shares are from 0 to 1."""

    concurrency: int = 0
    rate: float = 0.0
    repeated: float = 0.0  # share of requests whose image was sent before
    cancelled: float = 0.0  # share of requests whose client leaves before the end

    def __str__(self) -> str:
        text = f"{self.concurrency} clients" if self.concurrency else f"{self.rate:g}/s"
        text += f", {self.repeated:.0%} repeated" if self.repeated else ""
        return text + (f", {self.cancelled:.0%} cancelled" if self.cancelled else "")


@dataclass
class Outcome:
    """What one round measured."""

    seconds: float = 0.0
    captions: dict[bytes, str] = field(default_factory=dict)
    completed: int = 0
    failed: int = 0
    first_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    open_ms: list[float] = field(default_factory=list)  # of requests that the end of the round cut


def images(files: Sequence[bytes], load: Load, rng: random.Random) -> Iterator[bytes]:
    """Yield image files without end: new ones by random bytes after the image's end, repeated ones as they were."""
    recent: list[bytes] = []
    while True:
        if recent and rng.random() < load.repeated:
            yield rng.choice(recent)
        else:
            recent = [*recent, rng.choice(files) + rng.randbytes(8)][-RECENT:]
            yield recent[-1]


async def run(ask: Ask, files: Sequence[bytes], load: Load, seconds: float, seed: int = SEED) -> Outcome:
    """Send requests for `seconds`, then cut what is still open."""
    rng, outcome = random.Random(seed), Outcome()
    source = images(files, load, rng)
    began = time.perf_counter()
    end = began + seconds

    async def one() -> None:
        image = next(source)
        patience_s = rng.uniform(0, LEAVES_AFTER_S) if rng.random() < load.cancelled else None
        sent, first, text = time.perf_counter(), 0.0, ""

        async def read() -> None:
            nonlocal first, text
            async with aclosing(ask(image)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    first = first or time.perf_counter()
                    text += piece

        try:
            await asyncio.wait_for(read(), patience_s)
        except asyncio.TimeoutError:
            return
        except asyncio.CancelledError:
            outcome.open_ms.append((time.perf_counter() - sent) * 1000)
            raise
        except Exception:
            outcome.failed += 1
            return
        now = time.perf_counter()
        outcome.completed += 1
        outcome.captions[image[:-8]] = text.strip()
        outcome.first_ms.append(((first or now) - sent) * 1000)
        outcome.total_ms.append((now - sent) * 1000)

    async def client() -> None:
        while time.perf_counter() < end:
            await one()

    tasks = [asyncio.create_task(client()) for _ in range(load.concurrency)]
    due = began
    while load.rate and due < end:
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one()))
        due += rng.expovariate(load.rate)
    await asyncio.wait(tasks, timeout=max(end - time.perf_counter(), 0.01))
    outcome.seconds = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcome


def summary(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """Return the rates and percentiles of several rounds together, and the lowest and highest rate."""
    rates = [one.completed / one.seconds for one in outcomes]
    open_ms = [ms for one in outcomes for ms in one.open_ms]
    total = [ms for one in outcomes for ms in one.total_ms] + open_ms
    first = [ms for one in outcomes for ms in one.first_ms] + open_ms
    figures: dict[str, float | int] = {
        "captions_per_s": round(sum(one.completed for one in outcomes) / sum(one.seconds for one in outcomes), 3),
        "captions_per_s_low": round(min(rates), 3),
        "captions_per_s_high": round(max(rates), 3),
        "completed": sum(one.completed for one in outcomes),
        "open": len(open_ms),
        "failed": sum(one.failed for one in outcomes),
    }
    for name, values in (("first", first), ("total", total)):
        if values:
            figures |= {f"{name}_p{percent}_ms": round(percentile(values, percent), 1) for percent in (50, 90, 99)}
    return figures
