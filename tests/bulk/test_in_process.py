"""The engine without Triton: the published model in this process writes and refuses what the server does."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import pytest

from benchmarks.images import crops
from captioner.bulk.engines.base import Outcome
from captioner.bulk.engines.in_process import InProcessEngine
from captioner.bulk.sources.item import Item
from captioner.cli import main
from captioner.client import Client
from captioner.errors import ArtefactBroken, ParameterUnsupported, StartupRefused
from captioner.serving.in_process import InProcessModel
from tests.support.served import Served


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("photos")
    items = []
    for number, file in enumerate(itertools.islice(crops(), 8)):
        path = folder / f"{number}.jpg"
        path.write_bytes(file)
        items.append(Item(path.name, path))
    return items


def run(engine: InProcessEngine, items: list[Item]) -> list[Outcome]:
    async def outcomes() -> list[Outcome]:
        return [outcome async for outcome in engine(items)]

    return asyncio.run(outcomes())


@pytest.mark.triton
def test_the_engine_writes_what_the_server_writes_and_one_broken_image_fails_alone(
    served: Served, repository: Path, photos: list[Item], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    engine = InProcessEngine(repository, in_flight=4, parameters={"length": "long"})
    outcomes = run(engine, [Item("broken.jpg", broken), *photos])
    assert sorted(outcome.item.key for outcome in outcomes) == sorted(["broken.jpg", *(item.key for item in photos)])
    with Client(served.grpc) as client:
        for outcome in outcomes:
            if outcome.item.key == "broken.jpg":
                assert outcome.error and outcome.error.code == "IMAGE_FORMAT_UNKNOWN"
            else:
                assert outcome.caption and outcome.caption.text == client.caption(outcome.item.path, length="long").text


def test_the_model_refuses_as_the_server_does(repository: Path, photos: list[Item]) -> None:
    model = InProcessModel(repository, in_flight=2, threads=1)
    with pytest.raises(ParameterUnsupported, match="'sonnet'"):
        model.caption(photos[0].path.read_bytes(), {"style": "sonnet"})
    caption = model.caption(photos[0].path.read_bytes(), {"prompt": None, "stop": [" "], "seed": 7})
    assert caption.details.seed == 7 and " " not in caption.text
    model.close()


def test_a_folder_that_is_not_a_model_repository_is_refused(tmp_path: Path, photos: list[Item]) -> None:
    with pytest.raises(ArtefactBroken, match="model repository"):
        run(InProcessEngine(tmp_path), photos)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, photos: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captioner.serving.in_process", None)
    with pytest.raises(StartupRefused, match="pip install"):
        run(InProcessEngine(tmp_path), photos)


@pytest.mark.slow
def test_the_command_captions_a_folder_without_any_server(
    repository: Path, photos: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    words = ["--engine", "in-process", "--repository", str(repository), "--to", "jsonl", "--out", str(out)]
    assert main(["caption", str(photos[0].path.parent), "--server", "127.0.0.1:9", *words]) == 0
    assert len(out.read_text().splitlines()) == len(photos)
    assert "8 captioned" in capsys.readouterr().err
