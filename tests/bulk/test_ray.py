"""The bulk job on Ray Data: real actors on this machine, a real server behind them."""

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
from captioner.bulk.sources import discover
from captioner.bulk.sources.item import Item
from captioner.errors import CaptionerError, StartupRefused
from tests.support.served import Served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """60 photos, each another."""
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
    """Process ids of Ray's workers that hold one of our actors."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = line.read_text()
        except OSError:  # it ended while we looked
            continue
        if text.startswith("ray::") and "Worker" in text:
            found.append(int(line.parent.name))
    return found


def gone() -> bool:
    """Whether no actor is left; a process takes a moment to end."""
    deadline = time.monotonic() + 10
    while actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not actors()


def exactly_once(outcomes: list[Outcome], items: list[Item]) -> bool:
    return Counter(outcome.item.key for outcome in outcomes) == Counter(item.key for item in items)


@pytest.mark.triton
def test_a_killed_worker_loses_nothing_and_doubles_nothing(
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
    assert gone()
    assert capsys.readouterr().out == ""


def dies_of_number_3(item: Item) -> bytes:
    if item.key == "3.jpg":
        os._exit(1)
    return discover.read(item)


@pytest.mark.triton
def test_an_image_that_ends_its_worker_each_time_is_an_error_and_its_neighbours_are_captioned(
    served: Served, photos: list[Item]
) -> None:
    few = photos[:8]
    work = Work(served.grpc, 1, 4, {"max_tokens": 2}, read=dies_of_number_3)
    outcomes = asyncio.run(all_of(ray.RayEngine(work), few))
    assert exactly_once(outcomes, few)
    assert [outcome.item.key for outcome in outcomes if outcome.error] == ["3.jpg"]


@pytest.mark.triton
def test_what_is_refused_is_an_outcome_with_its_code_and_a_job_that_is_left_ends_its_workers(
    served: Served, photos: list[Item], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    asked: list[Item] = []

    def items() -> Iterator[Item]:
        for item in [Item("broken.jpg", broken), Item("gone.jpg", tmp_path / "gone.jpg"), *photos]:
            asked.append(item)
            yield item

    async def first_two_errors() -> list[CaptionerError]:
        engine = ray.engine(server=served.grpc, workers=1, in_flight=2, parameters={"max_tokens": 2})
        errors: list[CaptionerError] = []
        outcomes = engine(items())
        async for outcome in outcomes:
            if outcome.error is not None:
                errors.append(outcome.error)
            if len(errors) == 2:
                break
        await outcomes.aclose()  # type: ignore[attr-defined]
        return errors

    errors = asyncio.run(first_two_errors())
    assert "IMAGE_FORMAT_UNKNOWN" in {error.code for error in errors}
    assert gone()


def test_a_long_job_is_cut_into_chunks_that_grow_with_its_pace(
    photos: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def items() -> Iterator[Item]:
        for number, item in enumerate(photos):
            taken.append(number)
            yield item

    async def job() -> list[tuple[Outcome, int]]:
        nobody = "127.0.0.1:9"
        engine = ray.engine(server=nobody, workers=1, in_flight=2, parameters={}, retry_for_s=0)
        return [(outcome, len(taken)) async for outcome in engine(items())]

    monkeypatch.setattr(ray, "FIRST_CHUNK", 2)
    outcomes = asyncio.run(job())
    assert [pulled for _, pulled in outcomes[:4]] == [4] * 4  # no more is taken than can be worked on
    assert len({pulled for _, pulled in outcomes}) <= 3
    assert exactly_once([outcome for outcome, _ in outcomes], photos)
    assert {outcome.error.code for outcome, _ in outcomes if outcome.error} == {"SERVER_UNREACHABLE"}


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StartupRefused, match=r"pip install 'captioner\[ray\]'"):
        ray.engine(server="127.0.0.1:8001", workers=1, in_flight=1, parameters={})
