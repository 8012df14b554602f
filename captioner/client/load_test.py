"""A closed-loop load test of a running server: captions per second, time to first text, time per token.

Each of N clients sends its next image when its last caption is complete. Rounds alternate between the concurrencies,
after a warm-up round that is not counted.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from captioner.client import AsyncClient
from captioner.errors import CaptionerError


@dataclass
class Round:
    """The measurements of one round at one concurrency."""

    captions_per_s: float = 0.0
    tokens_per_s: float = 0.0
    first_text_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)  # mean time between the tokens of each caption


def unique_images(images: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the images forever, each with random bytes appended, so that the feature cache never has it."""
    for image in itertools.cycle(images):
        yield image + secrets.token_bytes(16)  # decoders ignore bytes after the end of the image


async def run_round(
    client: AsyncClient, images: Iterator[bytes], concurrency: int, captions: int, **parameters: Any
) -> Round:
    """Generate `captions` captions with `concurrency` closed-loop clients. Raises CaptionerError on a cache hit."""
    result, tokens, left = Round(), 0, captions

    async def one_client() -> None:
        nonlocal tokens, left
        while left > 0:
            left -= 1
            image = next(images)
            began = time.perf_counter()
            stream = await client.stream(image, **parameters)
            first = 0.0
            async for _ in stream:
                first = first or time.perf_counter()
            ended = time.perf_counter()
            first = first or ended
            if stream.details is None or stream.details.cache_hit:
                raise CaptionerError("an image came from the feature cache: its times do not include the encoder")
            result.first_text_ms.append((first - began) * 1000)
            result.total_ms.append((ended - began) * 1000)
            result.token_ms.append((ended - first) * 1000 / max(1, stream.details.tokens - 1))
            tokens += stream.details.tokens

    began = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    result.captions_per_s, result.tokens_per_s = captions / seconds, tokens / seconds
    return result


def summary(rounds: list[Round]) -> dict[str, float]:
    """Return medians over rounds; the lowest and highest captions per second show the noise."""
    rates = [r.captions_per_s for r in rounds]
    first = sorted(ms for r in rounds for ms in r.first_text_ms)
    return {
        "captions_per_s": round(statistics.median(rates), 2),
        "captions_per_s_low": round(min(rates), 2),
        "captions_per_s_high": round(max(rates), 2),
        "tokens_per_s": round(statistics.median(r.tokens_per_s for r in rounds), 1),
        "first_text_ms_p50": round(statistics.median(first), 1),
        "first_text_ms_p99": round(first[int(0.99 * (len(first) - 1))], 1),
        "total_ms_p50": round(statistics.median(ms for r in rounds for ms in r.total_ms), 1),
        "token_ms_p50": round(statistics.median(ms for r in rounds for ms in r.token_ms), 2),
    }


async def measure(
    server: str,
    images: Iterator[bytes],
    concurrencies: Sequence[int],
    captions: int,
    rounds: int,
    log: Callable[[str], None],
    **parameters: Any,
) -> dict[str, object]:
    """Run every concurrency `rounds` times, alternating, after a warm-up round; return what `summary` says of each."""
    results: dict[int, list[Round]] = {concurrency: [] for concurrency in concurrencies}
    async with AsyncClient(server) as client:
        card = await client.describe()
        await run_round(client, images, max(concurrencies), captions // 2, **parameters)
        for number in range(rounds):
            for concurrency in concurrencies:
                result = await run_round(client, images, concurrency, captions, **parameters)
                results[concurrency].append(result)
                log(f"round {number + 1}, concurrency {concurrency:3d}: {result.captions_per_s:.2f} captions/s")
    return {
        "model": f"{card.model}@{card.revision[:12]}",
        "device": card.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "captions_a_round": captions,
        "rounds": rounds,
        "concurrency": {concurrency: summary(rounds) for concurrency, rounds in results.items()},
    }
