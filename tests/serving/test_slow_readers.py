"""Clients that stop reading their streams: they hold no slot, no place in the queue and no growing memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from captioner.client import AsyncClient
from captioner.examples import PHOTOS
from tests.support.served import Served, assert_soon, metric

pytestmark = pytest.mark.triton

STREAMS = 40  # fewer than the places of the queue
ROUNDS = 3
LONG: dict[str, Any] = {"length": "long", "temperature": 2.0, "max_tokens": 80, "repetition_guard": False}


def test_streams_that_nobody_reads_end_on_the_server_and_leave_memory_flat(served: Served) -> None:
    server = listening(served.http)
    photo = PHOTOS[0].read_bytes()

    async def rounds() -> list[int]:
        async with AsyncClient(served.grpc) as silent, AsyncClient(served.grpc) as reading:
            memory = []
            for number in range(ROUNDS):
                finished = metric(served, "captioner_captions_total")
                streams = [await silent.stream(photo, seed=number * STREAMS + each, **LONG) for each in range(STREAMS)]
                await until(lambda: metric(served, "captioner_captions_total") >= finished + STREAMS)  # noqa: B023
                await until(lambda: metric(served, "captioner_running") + metric(served, "captioner_waiting") == 0)
                assert (await reading.caption(photo)).text
                memory.append(sum(each.memory_info().rss for each in (server, *server.children(recursive=True))))
                del streams[:]
            return memory

    memory = asyncio.run(rounds())
    assert memory[-1] - memory[1] < 8 * 2**20, memory  # the first round fills pools


async def until(holds: Callable[[], bool]) -> None:
    await asyncio.to_thread(assert_soon, holds, 60)


def listening(address: str) -> psutil.Process:
    """Return the process that listens at HOST:PORT."""
    port = int(address.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            return psutil.Process(connection.pid)
    raise AssertionError(f"no process listens at {address}")
