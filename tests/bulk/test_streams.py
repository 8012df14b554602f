"""Images from stdin and from the web, on the command line."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.bulk.sources import streams
from captioner.cli import main
from captioner.client.image_fetcher import ImageFetcher
from tests.support.image_host import IMAGE, LOCAL, image_host
from tests.support.scripted_server import TEXT, ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a host of images on this machine, which the command may ask here."""

    def fetcher(max_size: int) -> ImageFetcher:
        return ImageFetcher(("*",), allowed=lambda address: address == LOCAL, max_bytes=max_size)

    monkeypatch.setattr(streams, "_fetcher", fetcher)
    with image_host() as (port, _):
        yield f"http://{LOCAL}:{port}"


def caption(server: ScriptedServer, *arguments: object) -> tuple[int, str, str]:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["caption", "--server", server.address, *map(str, arguments)])
    out.seek(0)
    return code, out.read(), err.getvalue()


def with_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("options", [(), ("--engine", "local", "--report", "report")])
def test_a_dash_captions_the_image_on_stdin(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    server.finish_reasons[b"other"] = "deadline"
    with_stdin(monkeypatch, IMAGE)
    code, out, err = caption(server, "-", *options)
    assert (code, out) == (0, f"{TEXT}\n" if not options else f"-: {TEXT}\n"), err
    with_stdin(monkeypatch, b"other")
    assert caption(server, "-")[0] == 2, "what is on stdin is what is sent"


def test_an_empty_stdin_is_refused(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with_stdin(monkeypatch, b"")
    code, _, err = caption(server, "-")
    assert code == 2 and "-: IMAGE_MISSING: the image is empty" in err


@pytest.mark.parametrize("to", [("--to", "txt"), ("--to", "jsonl", "--out", "out"), ("--to", "exif", "--out", "out")])
def test_stdin_has_no_name_in_an_output(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_stdin(monkeypatch, IMAGE)
    code, _, err = caption(server, "-", *to)
    assert code == 2 and "OUTPUT_REFUSED: - is no file" in err and not list(tmp_path.iterdir())


def test_a_url_is_fetched_only_with_the_option(server: ScriptedServer, host: str) -> None:
    code, _, err = caption(server, f"{host}/a.jpg")
    assert code == 2 and "give --allow-url to fetch it" in err
    assert caption(server, f"{host}/a.jpg", "--allow-url") == (0, f"{TEXT}\n", "")
    code, out, _ = caption(server, f"{host}/a.jpg", "--allow-url", "--json")
    assert json.loads(out)["file"] == f"{host}/a.jpg"


def test_an_address_of_a_private_network_is_never_fetched(server: ScriptedServer) -> None:
    with image_host() as (port, asked):
        code, _, err = caption(server, f"http://{LOCAL}:{port}/a.jpg", "--allow-url")
    assert code == 2 and "IMAGE_URL_REFUSED" in err and not asked


def test_urls_and_files_share_a_table_and_each_is_written_once(
    server: ScriptedServer, host: str, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"photo")
    report = tmp_path / "report"
    words = [tmp_path / "photos", f"{host}/b.jpg", f"{host}/b.jpg", f"{host}/missing/c.jpg", "--allow-url"]
    words += ["--to", "jsonl", "--out", tmp_path / "out", "--report", report]
    code, _, err = caption(server, *words)
    assert code == 1 and "2 captioned, 0 skipped, 1 failed" in err
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.jpg", f"{host}/b.jpg"]
    assert json.loads(report.read_text())["code"] == "IMAGE_URL_FAILED"
    assert "0 captioned, 2 skipped, 1 failed" in caption(server, *words)[2]
