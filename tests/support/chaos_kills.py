"""Kill the parts of a stack in turn, in a seeded order, and measure how soon each serves again."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import httpx

from captioner.client import AsyncClient
from captioner.errors import CaptionerError
from captioner.examples import PHOTOS
from tests.support.chaos_clients import Client
from tests.support.chaos_stack import PARTS, SERVER_PARTS, ChaosStack

RECOVERY_S = 60.0  # a part that does not serve after this time never does
_PROBE_S = 3.0
_PAUSE_S = 0.05


class Kills:
    """The kills of one run. `recoveries`: seconds from the kill until the part served again, by part."""

    def __init__(self, stack: ChaosStack, seed: int) -> None:
        self.recoveries: dict[str, list[float]] = {part: [] for part in PARTS}
        self.lost: list[str] = []  # parts that did not come back
        self._stack = stack
        self._rng = random.Random(seed)
        self._recovering: dict[str, asyncio.Task[None]] = {}

    async def run(self, seconds: float, interval_s: float) -> None:
        """Kill a part every `interval_s` for `seconds`; return when all parts serve again.

        A part of a replica that is not back yet waits, so that every recovery is that of one kill. The replicas take
        turns.
        """
        end, order, replica = time.monotonic() + seconds, list[str](), 0
        while (began := time.monotonic()) < end:
            if not order:
                order = self._rng.sample(PARTS, len(PARTS))
            part = order.pop()
            replica ^= part in SERVER_PARTS
            target = f"replica {replica}" if part in SERVER_PARTS else part
            if target in self._recovering:
                await self._recovering.pop(target)
            if await asyncio.to_thread(self._stack.kill, part, replica):
                self._recovering[target] = asyncio.create_task(self._recover(part, replica))
            await asyncio.sleep(max(began + interval_s - time.monotonic(), 0))
        await asyncio.gather(*self._recovering.values())

    async def _recover(self, part: str, replica: int) -> None:
        began, serves = time.monotonic(), self._probe(part, replica)
        while not await serves():
            if time.monotonic() > began + RECOVERY_S:
                self.lost.append(part)
                return
            await asyncio.sleep(_PAUSE_S)
        self.recoveries[part].append(time.monotonic() - began)

    def _probe(self, part: str, replica: int) -> Callable[[], Awaitable[bool]]:
        """Return a check that a part serves: a replica captions a new image, the page and the proxy answer."""

        async def captions() -> bool:
            image = PHOTOS[0].read_bytes() + self._rng.randbytes(8)
            try:
                async with AsyncClient(self._stack.addresses[replica], stall_timeout_s=_PROBE_S) as client:
                    return bool(await client.caption(image, max_tokens=2, priority_level=1))
            except CaptionerError:
                return False

        async def answers() -> bool:
            url = self._stack.page_url if part == "page" else self._stack.url
            try:
                async with httpx.AsyncClient(timeout=_PROBE_S) as http:
                    return (await http.get(f"{url}/healthz")).status_code < 500 or part == "proxy"
            except httpx.HTTPError:
                return False

        return captions if part in SERVER_PARTS else answers


def report(clients: Sequence[Client], kills: Kills, seconds: float) -> str:
    """Return what happened, as text: outcomes by endpoint, and the recovery time of each part."""
    lines = [f"{len(clients)} clients, {seconds:.0f} s"]
    for endpoint in dict.fromkeys(client.endpoint for client in clients):
        outcomes = [each for client in clients if client.endpoint == endpoint for each in client.outcomes]
        counts = Counter("fault" if each.fault else each.code or ("cut" if each.cut else "right") for each in outcomes)
        retried, longest = sum(each.attempts > 1 for each in outcomes), max(each.seconds for each in outcomes)
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        lines.append(f"{endpoint:8} {len(outcomes)} requests: {told}; {retried} retried; longest {longest:.1f} s")
    lines.append("| killed part | kills | serves again after (median) | (max) |")
    lines.append("|---|---|---|---|")
    for part, times in kills.recoveries.items():
        spread = f"{statistics.median(times):.1f} s | {max(times):.1f} s" if times else "– | –"
        lines.append(f"| {part} | {len(times)} | {spread} |")
    return "\n".join(lines)
