"""One client with 500 requests does not delay another's single request by more than two captions' time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import httpx
import pytest

from benchmarks.http_captions import Answer, Refused, caption
from captioner.client import AsyncClient, RetryPolicy
from captioner.examples import PHOTOS
from tests.support.crowd import Fairness, beside_a_crowd
from tests.support.pages import page_process
from tests.support.served import Served

pytestmark = [pytest.mark.triton, pytest.mark.alone]

REQUESTS, SINGLES = 500, 5
SETTLE_S = 8.0  # until the crowd has connected, and fills every slot and every waiting place
CAPTIONS = 2.0
RETRY_S = 1.0
KEYS = ("crowd", "single")


def picture(number: int) -> bytes:
    """Return a photo that no feature cache has."""
    return PHOTOS[number % len(PHOTOS)].read_bytes() + Random(number).randbytes(8)


async def by_grpc(address: str) -> Fairness:
    policy = RetryPolicy(max_elapsed_s=120)
    async with (
        AsyncClient(address, retry=policy, stall_timeout_s=120) as many,
        AsyncClient(address, retry=policy, stall_timeout_s=120) as one,
    ):

        async def crowd(number: int) -> float:
            times = (await many.caption(picture(number))).details.timings_ms
            return times.total - times.queue

        async def single(number: int) -> float:
            return (await one.caption(picture(number))).details.timings_ms.total

        return await beside_a_crowd(crowd, single, REQUESTS, SINGLES, SETTLE_S)


async def by_http(url: str) -> Fairness:
    """Send with an API key for each client; the crowd retries a 503 by its Retry-After.

    The single client has a thread of its own: it must not wait for the event loop of the crowd's 500 tasks.
    """
    headers = [{"Authorization": f"Bearer {key}"} for key in KEYS]

    async def crowd(number: int) -> float:
        while True:
            answer = Answer()
            try:
                await caption(many, "whole", picture(number), answer)
            except Refused as error:
                if error.status != 503:
                    raise
                await asyncio.sleep(error.retry_after_s or RETRY_S)
            except httpx.TransportError:  # refused before the API had read the body
                await asyncio.sleep(RETRY_S)
            else:
                assert answer.details is not None
                times = answer.details["timings_ms"]
                return float(times["total"] - times["queue"])

    async def single(number: int) -> float:
        answer = await asyncio.to_thread(one.post, "/v1/captions", files={"image": picture(number)})
        assert answer.status_code == 200, answer.text
        return float(answer.json()["details"]["timings_ms"]["total"])

    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=url, timeout=120, headers=headers[1]) as one:
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, headers=headers[0]) as many:
            return await beside_a_crowd(crowd, single, REQUESTS, SINGLES, SETTLE_S)


def test_a_crowd_by_grpc_does_not_delay_another_client(served: Served) -> None:
    fairness = asyncio.run(by_grpc(served.grpc))
    assert fairness.delay <= CAPTIONS, fairness


def test_a_crowd_by_http_does_not_delay_another_key(served: Served, tmp_path: Path) -> None:
    options = [word for key in KEYS for word in ("--api-key", key)]
    with page_process(tmp_path, served.grpc, *options) as (url, _):
        fairness = asyncio.run(by_http(url))
    assert fairness.delay <= CAPTIONS, fairness
