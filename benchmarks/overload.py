"""Goodput and refusals of a running server at 0.5, 1, 2 and 4 times its capacity.

    python -m benchmarks.overload [--server 127.0.0.1:8001] [--page http://127.0.0.1:7860] [--seconds 30]

Capacity is the rate of a closed loop of `--in-flight` clients. At each load, requests then arrive at random (Poisson,
fixed seed), whether or not earlier ones were answered, and none is sent again. Goodput is the captions that came within
`--deadline-ms`, per second of arrivals. Photos are crops of the shipped examples, new ones every time, so that no
request hits the feature cache. With `--page`, requests go through the HTTP API instead, and their `Retry-After` is
recorded. This program shares the machine with the server, so compare ratios. The last line of stdout is one JSON
document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx

from benchmarks.http_captions import Answer, Refused, caption
from benchmarks.images import crops
from benchmarks.measurement import machine, percentile
from captioner.client import AsyncClient
from captioner.client.load_test import run_round, unique_images
from captioner.errors import CaptionerError
from captioner.wire import GRPC_PORT

LOADS = (0.5, 1.0, 2.0, 4.0)
SEED = 14
PHOTOS = 64
_RETRY = re.compile(r"retry in ([\d.]+) (ms|s)\b")
Send = Callable[[bytes], Awaitable[None]]


@dataclass
class Load:
    """What came of the requests of one load. Times are in ms."""

    times: float  # of the capacity
    seconds: float
    sent: int = 0
    caption_ms: list[float] = field(default_factory=list)
    refusal_ms: list[float] = field(default_factory=list)
    retry_after_s: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    def summary(self, deadline_ms: int) -> dict[str, Any]:
        """Return the figures of the table."""
        in_time = [ms for ms in self.caption_ms if ms <= deadline_ms]
        waits = self.retry_after_s
        return {
            "load": self.times,
            "sent": self.sent,
            "captions_in_time": len(in_time),
            "goodput_per_s": round(len(in_time) / self.seconds, 2),
            "caption_p50_ms": _percentile(self.caption_ms, 50),
            "caption_p99_ms": _percentile(self.caption_ms, 99),
            "refusal_p50_ms": _percentile(self.refusal_ms, 50),
            "refusal_p99_ms": _percentile(self.refusal_ms, 99),
            "retry_after_s": {"low": min(waits), "high": max(waits), "different": len(set(waits))} if waits else None,
            "codes": dict(self.codes),
        }


async def offer(send: Send, photos: list[bytes], load: Load, rate: float, seed: int = SEED) -> None:
    """Send requests at `rate` a second for `load.seconds`, and record each of their ends in `load`."""
    rng, images = random.Random(seed), unique_images(photos)
    end, due, tasks = time.monotonic() + load.seconds, time.monotonic(), list[asyncio.Task[None]]()
    while (due := due + rng.expovariate(rate)) < end:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        tasks.append(asyncio.create_task(_request(send, next(images), load)))
    await asyncio.gather(*tasks)


async def _request(send: Send, image: bytes, load: Load) -> None:
    load.sent += 1
    began = time.perf_counter()
    try:
        await send(image)
    except (CaptionerError, Refused) as error:
        code, message = error.code or str(error), str(error)
        load.codes[code] += 1
        if code == "SERVER_BUSY":
            load.refusal_ms.append((time.perf_counter() - began) * 1000)
            wait = error.retry_after_s if isinstance(error, Refused) else _retry_after_s(message)
            load.retry_after_s += [] if wait is None else [wait]
    except httpx.HTTPError as error:
        load.codes[type(error).__name__] += 1
    else:
        load.caption_ms.append((time.perf_counter() - began) * 1000)


def _retry_after_s(message: str) -> float | None:
    found = _RETRY.search(message)
    return float(found[1]) / (1000 if found[2] == "ms" else 1) if found else None


def _percentile(values: list[float], percent: float) -> float | None:
    return round(percentile(values, percent), 1) if values else None


async def measure(
    server: str, page: str | None, seconds: float, in_flight: int, deadline_ms: int, loads: tuple[float, ...] = LOADS
) -> dict[str, object]:
    """Measure the capacity and then each load; return the JSON document."""
    photos = list(islice(crops(SEED), PHOTOS))
    limits = httpx.Limits(max_connections=None)
    async with AsyncClient(server) as client, httpx.AsyncClient(base_url=page or "", timeout=60, limits=limits) as http:
        await run_round(client, unique_images(photos), in_flight, in_flight)  # a warm-up
        began, captions = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds / 2:
            await run_round(client, unique_images(photos), in_flight, 2 * in_flight)
            captions += 2 * in_flight
        capacity = captions / elapsed

        async def by_grpc(image: bytes) -> None:
            await client.caption(image, deadline_ms=deadline_ms)

        async def by_http(image: bytes) -> None:
            await caption(http, "whole", image, Answer(), deadline_ms=deadline_ms)

        results = []
        for times in loads:
            load = Load(times, seconds)
            await offer(by_http if page else by_grpc, photos, load, times * capacity)
            results.append(load.summary(deadline_ms))
    peak = max(each["goodput_per_s"] for each in results)
    for each in results:
        each["goodput_over_peak"] = round(each["goodput_per_s"] / peak, 3) if peak else None
    return {
        "benchmark": "overload",
        "endpoint": "http" if page else "grpc",
        "capacity_per_s": round(capacity, 2),
        "seconds": seconds,
        "deadline_ms": deadline_ms,
        "machine": machine(),
        "loads": results,
    }


def table(document: Any) -> str:
    """Return the loads as a Markdown table."""
    lines = [
        "| load | sent | in time | goodput | of the peak | caption p50, p99 | refusal p50, p99 | Retry-After | codes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in document["loads"]:
        wait, codes = each["retry_after_s"], ", ".join(f"{count} {code}" for code, count in each["codes"].items())
        shown = f"{wait['low']:g}–{wait['high']:g} s, {wait['different']} different" if wait else "–"
        lines.append(
            f"| {each['load']:g}× | {each['sent']} | {each['captions_in_time']} | {each['goodput_per_s']}/s "
            f"| {each['goodput_over_peak']} | {each['caption_p50_ms']}, {each['caption_p99_ms']} ms "
            f"| {each['refusal_p50_ms']}, {each['refusal_p99_ms']} ms | {shown} | {codes or '–'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}", help="gRPC address (default %(default)s)")
    parser.add_argument("--page", help="URL of the HTTP API; by default, requests go to --server")
    parser.add_argument("--seconds", type=float, default=30, help="time of each load (default %(default)s)")
    parser.add_argument("--in-flight", type=int, default=32, help="clients of the closed loop (default %(default)s)")
    parser.add_argument("--deadline-ms", type=int, default=10_000, help="of each request (default %(default)s)")
    options = parser.parse_args()
    arguments = options.server, options.page, options.seconds, options.in_flight, options.deadline_ms
    document = asyncio.run(measure(*arguments))
    print(table(document))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
