"""kill -9 at random moments, of the job and of the server: nothing is lost and nothing comes twice."""

from __future__ import annotations

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
from captioner.bulk.outputs import exif, xmp
from captioner.client import Client
from tests.conftest import Start
from tests.support.served import Served

pytestmark = [pytest.mark.triton, pytest.mark.slow]

PHOTOS, KILLS, FEWEST = 48, 5, 2  # a fast machine is through before the last
NAMES = [f"{number % 3}/{number:02d}.jpg" for number in range(PHOTOS)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return dict(zip(NAMES, islice(crops(seed=11), PHOTOS), strict=False))


@pytest.fixture(scope="module")
def captions(served: Served, photos: dict[str, bytes]) -> dict[str, str]:
    """What the model says of each, asked one after the other."""
    with Client(served.grpc) as client:
        return {name: client.caption(photo).text for name, photo in photos.items()}


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
            path.with_suffix(".xmp").write_bytes(xmp.described(None, "old"))
        else:
            path.write_bytes(exif.described(path.read_bytes(), "old"))


def read_sidecars(folder: Path, form: str) -> dict[str, str | None]:
    texts: dict[str, str | None] = {}
    for name in NAMES:
        path = folder / name
        if form == "txt":
            texts[name] = path.with_suffix(".txt").read_text().removesuffix("\n")
        elif form == "xmp":
            texts[name] = xmp.description(path.with_suffix(".xmp").read_bytes())
        else:
            texts[name] = exif.description(path.read_bytes())
    return texts


def run_killing(served: Served, *arguments: object, moved: Callable[[], int]) -> int:
    """Runs the job again and again, killed each time a while after something was written; how often it was killed."""
    command = [sys.executable, "-m", "captioner.cli", "caption", "--server", served.grpc, "--in-flight", "3"]
    chance, killed = random.Random(), 0
    while True:
        before = moved()
        process = subprocess.Popen([*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
        if killed < KILLS:
            while process.poll() is None and moved() == before:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.04))
            process.kill()
        _, said = process.communicate(timeout=120)
        if process.returncode == 0:
            return killed
        assert process.returncode == -9, said
        killed += 1


def touched(folder: Path, form: str) -> Callable[[], int]:
    """Grows with every file that is replaced."""
    return lambda: sum(
        (folder / name).with_suffix(".jpg" if form == "exif" else f".{form}").stat().st_mtime_ns for name in NAMES
    )


@pytest.mark.parametrize(
    ("form", "existing", "expected"),
    [
        ("txt", "append", "old {}"),
        ("txt", "prepend", "{} old"),
        ("txt", "overwrite", "{}"),
        ("xmp", "append", "old {}"),
        ("exif", "prepend", "{} old"),
    ],
)
def test_a_killed_job_changes_each_caption_once(
    served: Served, folder: Path, captions: dict[str, str], form: str, existing: str, expected: str
) -> None:
    write_old(folder, form)
    killed = run_killing(served, folder, "--to", form, "--existing", existing, moved=touched(folder, form))
    assert killed >= FEWEST
    assert read_sidecars(folder, form) == {name: expected.format(text) for name, text in captions.items()}
    assert not list(folder.glob(".captioner-*.journal"))


def test_a_killed_job_writes_each_sidecar_once(served: Served, folder: Path, captions: dict[str, str]) -> None:
    killed = run_killing(served, folder, "--to", "txt", moved=lambda: len(list(folder.rglob("*.txt"))))
    assert killed >= FEWEST
    assert read_sidecars(folder, "txt") == captions
    assert len(list(folder.rglob("*.txt"))) == PHOTOS


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_a_killed_job_writes_each_line_once(
    served: Served, folder: Path, tmp_path: Path, captions: dict[str, str], form: str, existing: str
) -> None:
    out = tmp_path / "out"
    growing = out if existing == "skip" else tmp_path / "out.part"

    def size() -> int:
        return growing.stat().st_size if growing.exists() else 0

    assert run_killing(served, folder, "--to", form, "--out", out, "--existing", existing, moved=size) >= FEWEST
    with out.open(newline="", encoding="utf-8") as file:
        lines = list(map(json.loads, file)) if form == "jsonl" else list(csv.DictReader(file))
    assert sorted((line["file"], line["caption"]) for line in lines) == sorted(captions.items())


def test_a_server_that_restarts_under_a_job_loses_nothing(
    start_triton: Start, repository: Path, tmp_path: Path, photos: dict[str, bytes], captions: dict[str, str]
) -> None:
    server = start_triton(repository)
    folder, out = tmp_path / "photos", tmp_path / "out"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photos[name])
    command = [sys.executable, "-m", "captioner.cli", "caption", "--server", server.grpc_address, "--in-flight", "4"]
    job = subprocess.Popen([*command, str(folder), "--to", "csv", "--out", str(out)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    port = int(server.grpc_address.rpartition(":")[2])
    server.stop()
    assert job.poll() is None, "the job was done before the server went"
    start_triton(repository, grpc_port=port)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    with out.open(newline="") as file:
        assert sorted((row["file"], row["caption"]) for row in csv.DictReader(file)) == sorted(captions.items())
