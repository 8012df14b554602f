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
from captioner.bulk import in_worker, ray_data, sources
from captioner.bulk.item import Engine, Item, Outcome
from captioner.bulk.ray_worker import Work
from captioner.client import Client
from captioner.errors import ArtefactBroken, CaptionerError, ParameterUnsupported, StartupRefused
from tests.served import Served

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


async def all_of(engine: Engine, items: list[Item]) -> list[Outcome]:
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
    engine = ray_data.engine(server=served.grpc, workers=2, in_flight=8, parameters={"length": "short"})
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


@pytest.mark.triton
def test_workers_that_hold_the_model_write_what_the_server_writes(
    served: Served, repository: Path, photos: list[Item]
) -> None:
    few = photos[:4]
    held = ray_data.engine(server=None, repository=repository, workers=1, in_flight=4, parameters={"length": "long"})
    outcomes = asyncio.run(all_of(held, few))
    assert exactly_once(outcomes, few)
    with Client(served.grpc) as client:
        for outcome in outcomes:
            assert outcome.caption and outcome.caption.text == client.caption(outcome.item.path, length="long").text


def dies_of_number_3(item: Item) -> bytes:
    if item.key == "3.jpg":
        os._exit(1)
    return sources.read(item)


@pytest.mark.triton
def test_an_image_that_ends_its_worker_each_time_is_an_error_and_its_neighbours_are_captioned(
    served: Served, photos: list[Item]
) -> None:
    few = photos[:8]
    work = Work(served.grpc, None, 1, 4, {"max_tokens": 2}, read=dies_of_number_3)
    outcomes = asyncio.run(all_of(ray_data.RayEngine(work), few))
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
        engine = ray_data.engine(server=served.grpc, workers=1, in_flight=2, parameters={"max_tokens": 2})
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
        engine = ray_data.engine(server=nobody, workers=1, in_flight=2, parameters={}, retry_for_s=0)
        return [(outcome, len(taken)) async for outcome in engine(items())]

    monkeypatch.setattr(ray_data, "FIRST_CHUNK", 2)
    outcomes = asyncio.run(job())
    assert [ahead for _, ahead in outcomes[:4]] == [4] * 4  # no more is taken than can be worked on
    assert len({ahead for _, ahead in outcomes}) <= 3
    assert exactly_once([outcome for outcome, _ in outcomes], photos)
    assert {outcome.error.code for outcome, _ in outcomes if outcome.error} == {"SERVER_UNREACHABLE"}


def test_the_model_in_a_worker_refuses_as_the_server_does(repository: Path, photos: list[Item]) -> None:
    model = in_worker.InWorker(repository, in_flight=2, threads=1)
    with pytest.raises(ParameterUnsupported, match="'sonnet'"):
        model.caption(photos[0].path.read_bytes(), {"style": "sonnet"})
    caption = model.caption(photos[0].path.read_bytes(), {"prompt": None, "stop": [" "], "seed": 7})
    assert caption.details.seed == 7 and " " not in caption.text
    model.close()


def test_the_model_of_a_worker_is_verified_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ArtefactBroken, match="no model repository"):
        ray_data.engine(server=None, repository=tmp_path, workers=1, in_flight=1, parameters={})


def test_a_server_or_a_repository_is_needed() -> None:
    with pytest.raises(StartupRefused, match="one of the two"):
        ray_data.engine(server=None, workers=1, in_flight=1, parameters={})


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StartupRefused, match=r"pip install 'captioner\[ray\]'"):
        ray_data.engine(server="127.0.0.1:8001", workers=1, in_flight=1, parameters={})
