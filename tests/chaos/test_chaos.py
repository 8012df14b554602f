"""Every part is killed in turn under load: each request gets one right caption, or a refusal after its deadline."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from benchmarks.marked_images import marked_images
from tests.support.chaos_clients import ENDPOINTS, Client
from tests.support.chaos_kills import Kills, report
from tests.support.chaos_stack import ChaosStack, chaos_stack

pytestmark = [pytest.mark.triton, pytest.mark.alone]

CLIENTS, IMAGES_EACH = 16, 2
DEADLINE_MS = 30_000
PARAMETERS = {"length": "medium"}
SEED = 14


async def disturb(stack: ChaosStack, seconds: float, interval_s: float) -> tuple[list[Client], Kills]:
    """Run the clients while parts are killed; return when every client has its last answer."""
    marked = await marked_images(stack.addresses[0], CLIENTS * IMAGES_EACH, SEED, **PARAMETERS)
    clients = [
        Client(number, ENDPOINTS[number % len(ENDPOINTS)], images, stack.addresses, stack.url, PARAMETERS, DEADLINE_MS)
        for number, images in enumerate(zip(*[iter(marked)] * IMAGES_EACH, strict=True))
    ]
    kills, ended = Kills(stack, SEED), asyncio.Event()
    running = [asyncio.create_task(client.run(ended)) for client in clients]
    try:
        await kills.run(seconds, interval_s)
    finally:
        ended.set()
        await asyncio.gather(*running)
    return clients, kills


@pytest.mark.parametrize(
    ("seconds", "interval_s"),
    [(45, 5), pytest.param(600, 20, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])],
)
def test_every_request_gets_one_right_caption_or_a_refusal_after_its_deadline(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float, interval_s: float
) -> None:
    with chaos_stack(repository, tmp_path) as stack:
        began = time.monotonic()
        clients, kills = asyncio.run(disturb(stack, seconds, interval_s))
        with capsys.disabled():
            print(f"\n{report(clients, kills, time.monotonic() - began)}")
        stack.stop()
        deadline = time.monotonic() + 5  # a process notices within a quarter of a second that its parent was killed
        while (remains := stack.remains()) and time.monotonic() < deadline:
            time.sleep(0.1)
    outcomes = [each for client in clients for each in client.outcomes]
    assert [each for each in outcomes if each.fault] == []
    assert [client.sent for client in clients] == [len(client.outcomes) for client in clients]
    assert [client.number for client in clients if client.outcomes[-1].code] == [], "no caption after the last kill"
    assert kills.lost == []
    assert remains == []
