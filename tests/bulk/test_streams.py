"""Images from stdin and from the web, on the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.bulk.sources import streams
from captioner.client.image_fetcher import ImageFetcher
from tests.support.commands import caption
from tests.support.image_host import IMAGE, LOCAL, image_host
from tests.support.scripted_server import TEXT, ScriptedServer


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a host of images on this machine, which the command may ask here."""

    def fetcher(max_size: int) -> ImageFetcher:
        return ImageFetcher(("*",), allowed=lambda address: address == LOCAL, max_bytes=max_size)

    monkeypatch.setattr(streams, "_fetcher", fetcher)
    with image_host() as (port, _):
        yield f"http://{LOCAL}:{port}"


def with_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("options", [(), ("--engine", "local", "--report", "report")])
def test_a_dash_captions_the_image_on_stdin(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    scripted_server.finish_reasons[b"other"] = "deadline"
    with_stdin(monkeypatch, IMAGE)
    done = caption(scripted_server.address, "-", *options)
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n" if not options else f"-: {TEXT}\n"), done.stderr
    with_stdin(monkeypatch, b"other")
    assert caption(scripted_server.address, "-").returncode == 2, "what is on stdin is what is sent"


def test_an_empty_stdin_is_refused(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with_stdin(monkeypatch, b"")
    done = caption(scripted_server.address, "-")
    assert done.returncode == 2 and "-: IMAGE_MISSING: the image is empty" in done.stderr


@pytest.mark.parametrize("to", [("--to", "txt"), ("--to", "jsonl", "--out", "out"), ("--to", "exif", "--out", "out")])
def test_stdin_has_no_name_in_an_output(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_stdin(monkeypatch, IMAGE)
    done = caption(scripted_server.address, "-", *to)
    assert done.returncode == 2 and "OUTPUT_REFUSED: - is no file" in done.stderr and not list(tmp_path.iterdir())


def test_a_url_is_fetched_only_with_the_option(scripted_server: ScriptedServer, host: str) -> None:
    done = caption(scripted_server.address, f"{host}/a.jpg")
    assert done.returncode == 2 and "give --allow-url to fetch it" in done.stderr
    done = caption(scripted_server.address, f"{host}/a.jpg", "--allow-url")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{TEXT}\n", "")
    done = caption(scripted_server.address, f"{host}/a.jpg", "--allow-url", "--json")
    assert json.loads(done.stdout)["file"] == f"{host}/a.jpg"


def test_an_address_of_a_private_network_is_never_fetched(scripted_server: ScriptedServer) -> None:
    with image_host() as (port, asked):
        done = caption(scripted_server.address, f"http://{LOCAL}:{port}/a.jpg", "--allow-url")
    assert done.returncode == 2 and "IMAGE_URL_REFUSED" in done.stderr and not asked


def test_urls_and_files_share_a_table_and_each_is_written_once(
    scripted_server: ScriptedServer, host: str, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"photo")
    report = tmp_path / "report"
    words = [tmp_path / "photos", f"{host}/b.jpg", f"{host}/b.jpg", f"{host}/missing/c.jpg", "--allow-url"]
    words += ["--to", "jsonl", "--out", tmp_path / "out", "--report", report]
    done = caption(scripted_server.address, *words)
    assert done.returncode == 1 and "2 captioned, 0 skipped, 1 failed" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.jpg", f"{host}/b.jpg"]
    assert json.loads(report.read_text())["code"] == "IMAGE_URL_FAILED"
    assert "0 captioned, 2 skipped, 1 failed" in caption(scripted_server.address, *words).stderr
