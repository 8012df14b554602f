"""The in-process engine: the published model answers and refuses like the server, without a server."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.images import crops
from captioner.artifacts.version_store import VersionStore
from captioner.bulk.engines.base import Outcome
from captioner.bulk.engines.in_process import InProcessEngine
from captioner.bulk.sources.item import Item
from captioner.cli import main
from captioner.client import Client
from captioner.embedded import EMBEDDED
from captioner.errors import ArtefactBroken, ParameterUnsupported, StartupRefused
from captioner.examples import FOLDER
from captioner.serving.in_process import InProcessModel
from tests.support.served import Served

PHOTOS = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("photos")
    items = []
    for number, file in enumerate(itertools.islice(crops(seed=3), PHOTOS)):
        path = folder / f"{number}.jpg"
        path.write_bytes(file)
        items.append(Item(path.name, path))
    return items


def run(engine: InProcessEngine, items: list[Item]) -> list[Outcome]:
    async def outcomes() -> list[Outcome]:
        return [outcome async for outcome in engine(items)]

    return asyncio.run(outcomes())


@pytest.mark.triton
def test_the_engine_writes_the_captions_of_the_server_and_a_broken_image_fails_alone(
    served: Served, repository: Path, photos: list[Item], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    engine = InProcessEngine(repository, in_flight=4, parameters={"length": "long"})
    items = [Item("broken.jpg", broken), *photos[:8]]
    outcomes = run(engine, items)
    assert sorted(outcome.item.key for outcome in outcomes) == sorted(item.key for item in items)
    with Client(served.grpc) as client:
        for outcome in outcomes:
            if outcome.item.key == "broken.jpg":
                assert outcome.error and outcome.error.code == "IMAGE_FORMAT_UNKNOWN"
            else:
                assert outcome.caption and outcome.caption.text == client.caption(outcome.item.path, length="long").text


def test_the_model_refuses_the_parameters_that_the_server_refuses(repository: Path, photos: list[Item]) -> None:
    model = InProcessModel(repository, in_flight=2, threads=1)
    with pytest.raises(ParameterUnsupported, match="'sonnet'"):
        model.caption(photos[0].path.read_bytes(), {"style": "sonnet"})
    caption = model.caption(photos[0].path.read_bytes(), {"prompt": None, "stop": [" "], "seed": 7})
    assert caption.details.seed == 7 and " " not in caption.text
    future = model.submit(photos[0].path.read_bytes(), {})
    assert not future.cancel() and future.result().text, "a cancelled future would fail in the model's thread"
    model.close()


def test_a_folder_that_is_not_a_model_repository_is_refused(tmp_path: Path, photos: list[Item]) -> None:
    with pytest.raises(ArtefactBroken, match="model repository"):
        run(InProcessEngine(tmp_path), photos)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, photos: list[Item], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captioner.serving.in_process", None)
    with pytest.raises(StartupRefused, match="pip install"):
        run(InProcessEngine(tmp_path), photos)
    monkeypatch.setitem(sys.modules, "captioner.publish.publish", None)
    words = ["--engine", "in-process", "--repository", str(tmp_path / "new")]
    assert main(["caption", str(FOLDER), *words]) == 2
    assert "pip install 'captioner[models,export]' onnxruntime" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_completes_the_images_in_flight_and_the_same_command_resumes_without_a_server(
    repository: Path, photos: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    words = ["caption", str(photos[0].path.parent), "--engine", "in-process", "--repository", str(repository)]
    words += ["--server", "127.0.0.1:9", "--to", "jsonl", "--out", str(out), "--in-flight", "2"]
    process = subprocess.Popen([sys.executable, "-m", "captioner.cli", *words], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            assert process.poll() is None and time.monotonic() < until, "the job makes no progress"
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err, err
    kept = out.read_text().splitlines()
    assert 3 <= len(kept) < PHOTOS and f"{len(kept)} captioned, 0 skipped, 0 failed" in err
    assert main(words) == 0
    lines = out.read_text().splitlines()
    assert lines[: len(kept)] == kept and f"{len(kept)} skipped" in capsys.readouterr().err
    assert sorted(json.loads(line)["file"] for line in lines) == sorted(item.key for item in photos)


@pytest.mark.exhaustive
def test_the_embedded_model_is_published_into_an_empty_repository_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "model_repository"
    assert main(["caption", str(FOLDER / "cat.jpg"), "--engine", "in-process", "--repository", str(repository)]) == 0
    assert "cat.jpg: " in capsys.readouterr().out
    assert VersionStore(repository).versions()[1].model == EMBEDDED
