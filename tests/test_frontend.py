"""The page without a browser: what it says, what it offers of a model's card, what it refuses by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captioner.errors import CaptionerError, ImageMissing, ImageTooLarge, ParameterInvalid
from captioner.wire import Details, ImageInfo, ModelCard, Timings
from frontend import fields, words
from frontend.app import EXAMPLES, Page

DEAD = "127.0.0.1:9"  # nobody answers there
CARD = ModelCard(
    model="m",
    revision="0123456789",
    version="1",
    license="mit",
    styles={"plain": ["short", "long"], "tags": ["short"], "free": []},
    extras={},
    takes_name=False,
    default_style="plain",
    default_length="long",
    max_tokens=8,
    device="cpu",
    precision="fp32",
    follows_instructions=False,
    prompts={"plain": {"short": "Say little.", "long": "Say much."}, "tags": {"short": "Tags."}},
)


async def make_page() -> Page:
    """In a running loop, without which Gradio makes some and leaves them open."""
    return Page(DEAD)


@pytest.fixture(scope="module")
def page() -> Page:
    page = asyncio.run(make_page())
    page.card = CARD
    return page


@pytest.mark.parametrize("kind", CaptionerError.by_code.values())
def test_every_refusal_has_a_heading_its_sentence_and_its_code(kind: type[CaptionerError]) -> None:
    html = words.problem(kind("the sentence"))
    assert "<strong>" in html
    assert "The sentence" in html
    assert f"<code>{kind.code}</code>" in html


def test_a_refusal_cannot_bring_html_of_its_own() -> None:
    html = words.problem(ParameterInvalid("<img src=x onerror=alert(1)>"))
    assert "&lt;img" in html
    assert "<img" not in html


DETAILS = Details(
    model="m",
    revision="0123456789",
    version="1",
    prompt="p",
    seed=42,
    max_tokens=8,
    max_characters=None,
    temperature=0,
    top_p=1,
    top_k=0,
    repetition_penalty=1,
    num_beams=1,
    finish_reason="length",
    tokens=8,
    prompt_tokens=1,
    confidence=None,
    unsure=None,
    mean_logprob=-1,
    image=ImageInfo("JPEG", 1, 1, 1, False, False),
    timings_ms=Timings(1, 2, 30.4, 200.6),
    cache_hit=False,
)


def test_the_details_line_says_how_the_caption_came_to_be() -> None:
    line = words.details_line(DETAILS)
    for fact in ("m 0123456", "30 ms", "201 ms", "8", "cut at the token limit", "42"):
        assert f"<dd>{fact}</dd>" in line


@pytest.mark.parametrize(
    ("confidence", "unsure", "marked"), [(0.31, True, True), (0.87, False, False), (None, None, False)]
)
def test_a_caption_the_model_is_unsure_of_is_marked(
    confidence: float | None, unsure: bool | None, marked: bool
) -> None:
    line = words.details_line(replace(DETAILS, confidence=confidence, unsure=unsure))
    assert ("Please check this caption" in line) == marked
    assert ("<dt>confidence</dt>" in line) == (confidence is not None)


def test_an_empty_field_is_left_to_the_model() -> None:
    texts = {"temperature": "0.7", "top_k": " ", "max_tokens": "12"}
    values = fields.read_fields([texts.get(name, "") for name in fields.NAMES])
    assert values == dict.fromkeys(fields.NAMES) | {"temperature": 0.7, "max_tokens": 12}


@pytest.mark.parametrize(("name", "text"), [("temperature", "warm"), ("max_tokens", "2.7"), ("seed", "1e3")])
def test_a_field_that_is_no_such_number_is_refused_by_name_and_not_rounded(name: str, text: str) -> None:
    texts = [text if name == field else "" for field in fields.NAMES]
    with pytest.raises(ParameterInvalid, match=rf"{name} is '{text}'; it must be a"):
        fields.read_fields(texts)


def test_the_lengths_and_the_prompt_follow_the_style(page: Page) -> None:
    plain = page.choose_style("plain", None)
    assert (plain[page.length].value, plain[page.prompt]) == ("long", "Say much.")
    assert plain[page.length].visible
    tags = page.choose_style("tags", "long")
    assert (tags[page.length].value, tags[page.prompt]) == ("short", "Tags.")
    assert not tags[page.length].visible, "one length is no choice"
    free = page.choose_style("free", "long")
    assert (free[page.length].value, free[page.prompt]) == (None, "")


def test_a_server_that_is_not_up_is_said_in_words_and_looked_for_again() -> None:
    page = asyncio.run(make_page())
    shown = asyncio.run(page.look_for_server(None, None))
    assert f"No captioner server answers at {DEAD} yet." in shown[page.server]
    assert shown[page.timer].active


@pytest.mark.parametrize("path", [None, "", "/etc/passwd", "../../etc/passwd", "http://127.0.0.1/a.jpg"])
def test_only_an_upload_of_this_page_is_read(page: Page, path: str | None) -> None:
    with pytest.raises(ImageMissing):
        page._uploaded(None if path is None else {"path": path})


def test_the_examples_are_small_and_credited() -> None:
    assert len(EXAMPLES) >= 2
    credit = (EXAMPLES[0].parent / "CREDITS.md").read_text()
    for example in EXAMPLES:
        assert example.stat().st_size <= 60_000, example
        assert f"`{example.name}`" in credit


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def served_page(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m frontend` for a server that is not up: the process and its address."""
    port = free_port()
    command = [sys.executable, "-m", "frontend", "--server", DEAD, "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)})
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, "the page ended"
            time.sleep(0.1)
    yield process, url
    process.kill()
    process.wait()


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def events(url: str, session: str) -> str:
    """Everything the page sends to a browser session until its event ends."""
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash={session}", timeout=30) as stream:
        text: str = stream.read().decode()
        return text


def test_the_page_opens_reads_no_foreign_file_and_ends_without_a_trace(
    served_page: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = served_page
    with urllib.request.urlopen(f"{url}/config", timeout=30) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert "/" not in json.dumps(config["footer_links"]), "no links to elsewhere"
    write = next(d for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == "click")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(EXAMPLES[0].read_bytes())
    upload = {"meta": {"_type": "gradio.FileData"}}
    foreign: list[dict[str, Any]] = [
        {"path": str(secret)},
        {"path": str(secret)} | upload,
        {"path": f"{url}/theme.css"} | upload,
    ]
    for number, file in enumerate(foreign):
        data: list[Any] = [file, None, None, ""] + [""] * len(fields.NAMES)
        session = f"session{number}"
        body: dict[str, Any] = {"data": data, "fn_index": write["id"], "session_hash": session}
        post(f"{url}/gradio_api/queue/join", body)
        answer_text = events(url, session)
        assert ImageMissing.code in answer_text or '"success":false' in answer_text
        assert "SERVER_UNREACHABLE" not in answer_text, f"the page read {file['path']} and would have sent it"
    assert list(tmp_path.glob("captioner-page-*"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["secret.jpg"], "the page left files behind"


def test_a_file_over_the_servers_limit_and_under_the_pages_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    large = Path(page.image.GRADIO_CACHE) / "large.jpg"
    large.parent.mkdir(parents=True, exist_ok=True)
    with large.open("wb") as file:
        file.truncate(21 * 2**20)
    try:
        path = page._uploaded({"path": str(large)})
        with pytest.raises(ImageTooLarge, match="the limit is 20 MiB"):
            asyncio.run(page.client.caption(path))
    finally:
        large.unlink()
