"""Captions a second and times to the first text through gRPC, at several concurrencies, against a running server.

    python -m benchmarks.load [--server 127.0.0.1:8001] [--concurrency 1 16] [--captions 64] [--rounds 3]

Closed loop: each of N clients sends its next image when it has the caption of its last. Images are crops of the shipped
examples, different in every run, so that no answer comes from the feature cache; one that does ends the run. Rounds of
the concurrencies alternate, and the spread of the rounds is shown; a first round is thrown away. The last line of
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.images import crops
from captioner.client import AsyncClient
from captioner.wire import GRPC_PORT


@dataclass
class Round:
    """What one round at one concurrency showed."""

    captions_per_s: float = 0.0
    tokens_per_s: float = 0.0
    first_text_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)


async def run_round(client: AsyncClient, images: Iterator[bytes], concurrency: int, captions: int) -> Round:
    """`captions` captions by `concurrency` closed-loop clients."""
    result, tokens, left = Round(), 0, captions

    async def one_client() -> None:
        nonlocal tokens, left
        while left > 0:
            left -= 1
            image = next(images)
            began = time.perf_counter()
            stream = await client.stream(image, length="medium")
            first = 0.0
            async for _ in stream:
                first = first or time.perf_counter()
            ended = time.perf_counter()
            result.first_text_ms.append(((first or ended) - began) * 1000)
            result.total_ms.append((ended - began) * 1000)
            assert stream.details is not None and not stream.details.cache_hit, "this image was encoded before"
            tokens += stream.details.tokens

    began = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    result.captions_per_s, result.tokens_per_s = captions / seconds, tokens / seconds
    return result


def summary(rounds: list[Round]) -> dict[str, float]:
    """Medians over rounds, with the lowest and highest captions a second as the noise."""
    rates = [r.captions_per_s for r in rounds]
    first = sorted(ms for r in rounds for ms in r.first_text_ms)
    total = sorted(ms for r in rounds for ms in r.total_ms)
    return {
        "captions_per_s": round(statistics.median(rates), 2),
        "captions_per_s_low": round(min(rates), 2),
        "captions_per_s_high": round(max(rates), 2),
        "tokens_per_s": round(statistics.median(r.tokens_per_s for r in rounds), 1),
        "first_text_ms_p50": round(statistics.median(first), 1),
        "first_text_ms_p99": round(first[int(0.99 * (len(first) - 1))], 1),
        "total_ms_p50": round(statistics.median(total), 1),
    }


async def measure(server: str, concurrencies: list[int], captions: int, rounds: int) -> dict[str, object]:
    """Every concurrency `rounds` times in turn, after one round that is thrown away."""
    results: dict[int, list[Round]] = {concurrency: [] for concurrency in concurrencies}
    async with AsyncClient(server) as client:
        card = await client.describe()
        images = crops(seed=secrets.randbits(32))
        await run_round(client, images, max(concurrencies), captions // 2)
        for number in range(rounds):
            for concurrency in concurrencies:
                result = await run_round(client, images, concurrency, captions)
                results[concurrency].append(result)
                print(f"round {number + 1}, {concurrency:3d} at once: {result.captions_per_s:.2f} captions/s")
    return {
        "model": f"{card.model}@{card.revision[:12]}",
        "device": card.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "captions_a_round": captions,
        "rounds": rounds,
        "concurrency": {concurrency: summary(rounds) for concurrency, rounds in results.items()},
    }


def main() -> None:
    """Arguments only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.server, options.concurrency, options.captions, options.rounds))))


if __name__ == "__main__":
    main()
