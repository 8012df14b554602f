"""The comparison with peers: its arrivals, and a run of each system with a tiny model."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.peers.load import Load, images, run, summary
from benchmarks.peers.systems import SYSTEMS
from tests.benchmarks.conftest import Main

ANSWER_S = 0.02


async def ask(image: bytes) -> AsyncIterator[str]:
    """Answer in two pieces, 20 ms apart."""
    yield "a "
    await asyncio.sleep(ANSWER_S)
    yield image[:3].decode()


async def never(image: bytes) -> AsyncIterator[str]:
    await asyncio.sleep(60)
    yield ""


async def broken(image: bytes) -> AsyncIterator[str]:
    await asyncio.sleep(ANSWER_S)
    yield str(1 // 0)


def test_a_closed_loop_has_its_number_of_requests_under_way() -> None:
    outcome = asyncio.run(run(ask, [b"cat"], Load(concurrency=4), 0.5))
    assert 40 <= outcome.completed <= 4 * 0.5 / ANSWER_S
    assert set(outcome.captions.values()) == {"a cat"}
    assert max(outcome.first_ms) < ANSWER_S * 1000 <= min(outcome.total_ms)
    assert len(outcome.open_ms) <= 4


def test_random_arrivals_do_not_wait_for_answers() -> None:
    outcome = asyncio.run(run(never, [b"cat"], Load(rate=100), 0.5))
    assert outcome.completed == 0 and 25 <= len(outcome.open_ms) <= 100


def test_requests_that_the_end_cuts_count_with_the_time_that_they_waited() -> None:
    figures = summary([asyncio.run(run(never, [b"cat"], Load(concurrency=3), 0.2))])
    assert (figures["captions_per_s"], figures["open"]) == (0, 3)
    assert figures["total_p50_ms"] >= 200


def test_cancelled_requests_are_neither_captions_nor_failures() -> None:
    outcome = asyncio.run(run(never, [b"cat"], Load(concurrency=8, cancelled=1.0), 1))
    assert (outcome.completed, outcome.failed) == (0, 0)
    assert len(outcome.open_ms) <= 8


def test_failed_requests_are_counted() -> None:
    outcome = asyncio.run(run(broken, [b"cat"], Load(concurrency=1), 0.2))
    assert outcome.completed == 0 and outcome.failed > 2


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_the_share_of_repeated_images_is_as_asked(share: float) -> None:
    sent = list(islice(images([b"cat"], Load(repeated=share), random.Random(1)), 2000))
    assert 1 - len(set(sent)) / len(sent) == pytest.approx(share, abs=0.05)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [system.name for system in SYSTEMS])
def test_a_system_captions(main: Main, tmp_path: Path, name: str) -> None:
    plot = tmp_path / "plot.svg"
    loads = "--concurrency 2 --rates 2 --repeated 0.5 --cancelled 0.2"
    arguments = f"--size tiny --rounds 1 --seconds 5 {loads} --systems {name} --plot {plot}"
    document = json.loads(main("benchmarks.peers.__main__", arguments)[-1])
    assert document["excluded"] == {}
    assert sum(row["completed"] for row in document["results"]) > 4
    assert not any(row["failed"] for row in document["results"])
    assert len(document["results"]) == 4 and plot.read_text().count("<svg") == 1
