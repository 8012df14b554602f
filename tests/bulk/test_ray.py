"""The engine on Ray Data: real actors on this machine, against a real server."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.images import crops
from captioner.bulk.engines import ray
from captioner.bulk.engines.base import BulkEngine, Outcome
from captioner.bulk.engines.ray_worker import Work
from captioner.bulk.sources.item import Item, read
from captioner.errors import CaptionerError, StartupRefused
from tests.support.served import Served

# tests/bulk/test_job.py runs a job on Ray in the fast suite.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """60 different photos."""
    folder = tmp_path_factory.mktemp("photos")
    items = []
    for number, file in enumerate(itertools.islice(crops(), 60)):
        path = folder / f"{number}.jpg"
        path.write_bytes(file)
        items.append(Item(path.name, path))
    return items


async def all_of(engine: BulkEngine, items: list[Item]) -> list[Outcome]:
    return [outcome async for outcome in engine(items)]


def actors() -> list[int]:
    """Return the process ids of Ray workers that run one of our actors."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = line.read_text()
        except OSError:  # the process ended meanwhile
            continue
        if text.startswith("ray::") and "Worker" in text:
            found.append(int(line.parent.name))
    return found


def actors_end() -> bool:
    """Return whether every actor ends within 10 s."""
    deadline = time.monotonic() + 10
    while actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not actors()


def exactly_once(outcomes: list[Outcome], items: list[Item]) -> bool:
    return Counter(outcome.item.key for outcome in outcomes) == Counter(item.key for item in items)


@pytest.mark.exhaustive
@pytest.mark.triton
def test_a_killed_worker_neither_loses_nor_duplicates_an_outcome(
    served: Served, photos: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ray.engine(server=served.grpc, workers=2, in_flight=8, parameters={"length": "short"})
    killed: list[int] = []

    async def job() -> list[Outcome]:
        outcomes = []
        async for outcome in engine(photos):
            outcomes.append(outcome)
            if len(outcomes) == 20:
                killed.append(actors()[0])
                os.kill(killed[0], signal.SIGKILL)
        return outcomes

    outcomes = asyncio.run(job())
    assert killed and exactly_once(outcomes, photos)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert all(outcome.caption and outcome.caption.details.tokens for outcome in outcomes)
    assert actors_end()
    assert capsys.readouterr().out == ""


def exits_at_number_3(item: Item) -> bytes:
    if item.key == "3.jpg":
        os._exit(1)
    return read(item)


@pytest.mark.exhaustive
@pytest.mark.triton
def test_an_image_that_kills_its_worker_in_every_attempt_fails_alone(served: Served, photos: list[Item]) -> None:
    few = photos[:8]
    work = Work(served.grpc, 1, 4, {"max_tokens": 2}, read=exits_at_number_3)
    outcomes = asyncio.run(all_of(ray.RayEngine(work), few))
    assert exactly_once(outcomes, few)
    assert [outcome.item.key for outcome in outcomes if outcome.error] == ["3.jpg"]


@pytest.mark.exhaustive
@pytest.mark.triton
def test_a_refusal_is_an_outcome_with_its_code_and_closing_the_engine_ends_its_workers(
    served: Served, photos: list[Item], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    items = [Item("broken.jpg", broken), Item("missing.jpg", tmp_path / "missing.jpg"), *photos]

    async def first_two_errors() -> list[CaptionerError]:
        engine = ray.engine(server=served.grpc, workers=1, in_flight=2, parameters={"max_tokens": 2})
        errors: list[CaptionerError] = []
        outcomes = engine(items)
        async for outcome in outcomes:
            if outcome.error is not None:
                errors.append(outcome.error)
            if len(errors) == 2:
                break
        await outcomes.aclose()  # type: ignore[attr-defined]
        return errors

    errors = asyncio.run(first_two_errors())
    assert {error.code for error in errors} == {"IMAGE_FORMAT_UNKNOWN", "IMAGE_MISSING"}
    assert actors_end()


@pytest.mark.exhaustive
def test_a_long_job_runs_in_chunks_that_grow_with_its_rate(photos: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[Item] = []

    def items() -> Iterator[Item]:
        for item in photos:
            pulled.append(item)
            yield item

    async def job() -> list[tuple[Outcome, int]]:
        engine = ray.engine(server="127.0.0.1:9", workers=1, in_flight=2, parameters={}, retry_for_s=0)
        return [(outcome, len(pulled)) async for outcome in engine(items())]

    monkeypatch.setattr(ray, "FIRST_CHUNK", 2)
    outcomes = asyncio.run(job())
    assert [count for _, count in outcomes[:4]] == [4] * 4, "the first chunk has FIRST_CHUNK items for each in flight"
    assert len({count for _, count in outcomes}) <= 3
    assert exactly_once([outcome for outcome, _ in outcomes], photos)
    assert {outcome.error.code for outcome, _ in outcomes if outcome.error} == {"SERVER_UNREACHABLE"}


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StartupRefused, match=r"pip install 'captioner\[ray\]'"):
        ray.engine(server="127.0.0.1:8001", workers=1, in_flight=1, parameters={})
