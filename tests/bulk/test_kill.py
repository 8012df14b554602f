"""kill -9 of a job at random moments, and a restart of the server: no caption is lost or duplicated."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.images import crops
from captioner.bulk.outputs import image_metadata, xmp
from captioner.client import AsyncClient
from tests.conftest import Start
from tests.support.served import Served

pytestmark = [pytest.mark.triton, pytest.mark.slow]

PHOTOS, KILLS, MIN_KILLS = 48, 4, 2  # on a fast machine a job ends before the last kill
NAMES = [f"{number % 3}/{number:02d}.jpg" for number in range(PHOTOS)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return dict(zip(NAMES, islice(crops(seed=11), PHOTOS), strict=False))


@pytest.fixture(scope="module")
def captions(served: Served, photos: dict[str, bytes]) -> dict[str, str]:
    """The caption of each photo."""

    async def ask() -> list[str]:
        async with AsyncClient(served.grpc) as client:
            return [each.text for each in await asyncio.gather(*map(client.caption, photos.values()))]

    return dict(zip(photos, asyncio.run(ask()), strict=True))


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, bytes]) -> Path:
    for name, photo in photos.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(photo)
    return tmp_path / "photos"


def write_old(folder: Path, form: str) -> None:
    for name in NAMES:
        path = folder / name
        if form == "txt":
            path.with_suffix(".txt").write_text("old\n")
        elif form == "xmp":
            path.with_suffix(".xmp").write_bytes(xmp.with_description(None, "old"))
        else:
            path.write_bytes(image_metadata.with_description(path.read_bytes(), "old"))


def read_sidecars(folder: Path, form: str) -> dict[str, str | None]:
    texts: dict[str, str | None] = {}
    for name in NAMES:
        path = folder / name
        if form == "txt":
            texts[name] = path.with_suffix(".txt").read_text().removesuffix("\n")
        elif form == "xmp":
            texts[name] = xmp.description(path.with_suffix(".xmp").read_bytes())
        else:
            texts[name] = image_metadata.description(path.read_bytes())
    return texts


def run_with_kills(served: Served, *arguments: object, progress: Callable[[], int]) -> int:
    """Run the job until it ends; kill it KILLS times shortly after `progress` changed. Return the number of kills."""
    command = [sys.executable, "-m", "captioner.cli", "caption", "--server", served.grpc, "--in-flight", "3"]
    rng, kills = random.Random(), 0
    while True:
        before = progress()
        process = subprocess.Popen([*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
        try:
            if kills < KILLS:
                until = time.monotonic() + 60
                while process.poll() is None and progress() == before:
                    assert time.monotonic() < until, "the job makes no progress"
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.04))
                process.kill()
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
        if process.returncode == 0:
            return kills
        assert process.returncode == -9, err
        kills += 1


def last_changes(folder: Path, form: str) -> Callable[[], int]:
    """Return a function whose value grows with every replaced file."""
    return lambda: sum(
        (folder / name).with_suffix(".jpg" if form == "exif" else f".{form}").stat().st_mtime_ns for name in NAMES
    )


@pytest.mark.parametrize(
    ("form", "existing", "expected"),
    [
        ("txt", "append", "old {}"),
        pytest.param("txt", "prepend", "{} old", marks=pytest.mark.exhaustive),
        pytest.param("txt", "overwrite", "{}", marks=pytest.mark.exhaustive),
        pytest.param("xmp", "append", "old {}", marks=pytest.mark.exhaustive),
        pytest.param("exif", "prepend", "{} old", marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_job_changes_each_caption_once(
    served: Served, folder: Path, captions: dict[str, str], form: str, existing: str, expected: str
) -> None:
    write_old(folder, form)
    job = (folder, "--to", form, "--existing", existing)
    assert run_with_kills(served, *job, progress=last_changes(folder, form)) >= MIN_KILLS
    assert read_sidecars(folder, form) == {name: expected.format(text) for name, text in captions.items()}
    assert not list(folder.glob(".captioner-*.journal"))


def test_a_killed_job_writes_each_sidecar_once(served: Served, folder: Path, captions: dict[str, str]) -> None:
    kills = run_with_kills(served, folder, "--to", "txt", progress=lambda: len(list(folder.rglob("*.txt"))))
    assert kills >= MIN_KILLS
    assert read_sidecars(folder, "txt") == captions
    assert len(list(folder.rglob("*.txt"))) == PHOTOS


@pytest.mark.parametrize(
    ("form", "existing"),
    [
        ("jsonl", "skip"),
        ("csv", "overwrite"),
        pytest.param("csv", "skip", marks=pytest.mark.exhaustive),
        pytest.param("jsonl", "overwrite", marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_job_writes_each_line_once(
    served: Served, folder: Path, tmp_path: Path, captions: dict[str, str], form: str, existing: str
) -> None:
    out = tmp_path / "out"
    growing = out if existing == "skip" else tmp_path / "out.part"

    def size() -> int:
        return growing.stat().st_size if growing.exists() else 0

    job = (folder, "--to", form, "--out", out, "--existing", existing)
    assert run_with_kills(served, *job, progress=size) >= MIN_KILLS
    with out.open(newline="", encoding="utf-8") as file:
        lines = list(map(json.loads, file)) if form == "jsonl" else list(csv.DictReader(file))
    assert sorted((line["file"], line["caption"]) for line in lines) == sorted(captions.items())


@pytest.mark.exhaustive
def test_a_job_loses_nothing_when_its_server_restarts(
    start_triton: Start, repository: Path, tmp_path: Path, photos: dict[str, bytes], captions: dict[str, str]
) -> None:
    server = start_triton(repository)
    folder, out = tmp_path / "photos", tmp_path / "out"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photos[name])
    command = [sys.executable, "-m", "captioner.cli", "caption", "--server", server.grpc_address, "--in-flight", "4"]
    job = subprocess.Popen([*command, str(folder), "--to", "csv", "--out", str(out)], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not out.exists() or out.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < until, "the job makes no progress"
            time.sleep(0.01)
        port = int(server.grpc_address.rpartition(":")[2])
        server.stop()
        assert job.poll() is None, "the job ended before the server stopped"
        start_triton(repository, grpc_port=port)
        _, err = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 0, err
    with out.open(newline="") as file:
        assert sorted((row["file"], row["caption"]) for row in csv.DictReader(file)) == sorted(captions.items())
