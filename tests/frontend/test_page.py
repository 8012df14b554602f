"""The page without a browser: what it says, what it offers of a model's card, what it refuses by itself."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, get_args

import pytest

from captioner import examples
from captioner.client import AsyncClient
from captioner.errors import CaptionerError, ImageMissing, ServerUnreachable
from captioner.wire import Ending, ModelCard
from frontend.model_card_cache import ModelCardCache
from frontend.page import fields, messages, theme
from frontend.page.page import Page
from tests.support.api_server import DEAD
from tests.support.cards import CARD
from tests.support.pages import Serve


class Telling(AsyncClient):
    """A client whose server tells `card`."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(DEAD)
        self.card = card

    async def describe(self) -> ModelCard:
        return self.card


async def make_page(client: AsyncClient) -> Page:
    """In a running loop, without which Gradio makes some and leaves them open."""
    return Page(ModelCardCache(client))


@pytest.fixture(scope="module")
def page() -> Page:
    return asyncio.run(make_page(Telling(CARD)))


def test_every_refusal_has_a_heading_and_every_end_a_word_for_the_browser() -> None:
    told = json.loads(messages.for_the_browser())
    assert told["headings"].keys() == CaptionerError.by_code.keys()
    assert told["headings"][ImageMissing.code] == messages.HEADINGS[ImageMissing]
    assert told["finishes"].keys() == set(get_args(Ending))
    assert told["fields"] == list(fields.NAMES)


def test_the_pages_words_cannot_end_their_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(messages.HEADINGS, CaptionerError, "</script><script>alert(1)")
    script = theme.head("").split("</script>")
    assert len(script) == 3
    assert "alert(1)" in json.loads(script[0].partition(">")[2])["headings"]["INTERNAL"]


def choose(page: Page, style: str, length: str | None) -> dict[Any, Any]:
    return asyncio.run(page.choose_style(style, length, [], ""))


def test_the_lengths_and_the_prompt_follow_the_style(page: Page) -> None:
    plain = choose(page, "plain", None)
    assert (plain[page.length].value, plain[page.prompt]) == ("long", "Say much.")
    assert plain[page.length].visible
    tags = choose(page, "tags", "long")
    assert (tags[page.length].value, tags[page.prompt]) == ("short", "Tags.")
    assert not tags[page.length].visible, "one length is no choice"
    free = choose(page, "free", "long")
    assert (free[page.length].value, free[page.prompt]) == (None, "")


def test_a_prompt_with_a_place_for_a_name_asks_for_one(page: Page) -> None:
    plain = asyncio.run(page.render("plain", "short", ["name"], "Ada"))
    assert plain[page.prompt] == plain[page.rendered] == "Say little. It is Ada."
    assert plain[page.name].visible
    assert not asyncio.run(page.render("plain", "short", [], "Ada"))[page.name].visible


def test_the_alt_text_style_brings_its_limit_and_takes_it_away_again(page: Page) -> None:
    assert choose(page, "alt-text", None)[page.limit] == "125"
    assert choose(page, "plain", None)[page.limit] == ""


def test_a_server_that_is_not_up_is_said_in_words() -> None:
    page = asyncio.run(make_page(AsyncClient(DEAD)))
    shown = asyncio.run(page.look_for_server(None, None, [], None, "", ""))
    assert f"No captioner server answers at {DEAD}." in shown[page.server]


def test_what_was_chosen_and_written_stays_when_another_version_is_served() -> None:
    client = Telling(CARD)
    page = asyncio.run(make_page(client))
    first = asyncio.run(page.look_for_server(None, None, None, None, None, None))
    assert (first[page.style].value, first[page.prompt], first[page.limit]) == ("plain", "Say much.", "")
    client.card = replace(CARD, version="2", styles={"plain": ["long"]}, prompts={"plain": {"long": "Say all."}})
    other = asyncio.run(page.look_for_server("plain", "short", [], "", "Say much.", "Say much."))
    assert (other[page.style].value, other[page.length].value, other[page.prompt]) == ("plain", "long", "Say all.")
    assert page.limit not in other
    own = asyncio.run(page.look_for_server("tags", "short", [], "", "Write a rhyme.", "Tags."))
    assert (own[page.style].value, own[page.rendered]) == ("plain", "Say all."), "there are no tags any more"
    assert page.prompt not in own


def test_the_last_card_holds_while_the_server_is_away() -> None:
    client = Telling(CARD)
    served = ModelCardCache(client)
    assert asyncio.run(served.last()) == CARD

    async def fail() -> ModelCard:
        raise ServerUnreachable("away")

    client.describe = fail  # type: ignore[method-assign]
    served._asked = -inf
    assert asyncio.run(served.last()) == CARD
    with pytest.raises(ServerUnreachable):
        asyncio.run(served.get())


def test_the_examples_are_small_and_credited() -> None:
    assert len(examples.PHOTOS) >= 2
    credit = (examples.FOLDER / "CREDITS.md").read_text()
    for example in examples.PHOTOS:
        assert example.stat().st_size <= 60_000, example
        assert f"`{example.name}`" in credit


def test_the_page_opens_takes_no_upload_and_ends_without_a_trace(
    serve_page: Serve, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    url = serve_page(DEAD)
    process = processes.pop(url)
    with urllib.request.urlopen(f"{url}/config", timeout=30) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert "/" not in json.dumps(config["footer_links"]), "no links to elsewhere"
    assert not any(d["queue"] for d in config["dependencies"]), "a queue's answer is one replica's"
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\nabcdef\r\n--x--\r\n'
    upload = urllib.request.Request(
        f"{url}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(upload, timeout=30)
    scratch = Path(environment_of(process)["TMPDIR"])
    assert list(scratch.glob("captioner-page-*"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert list(scratch.iterdir()) == [], "the page left files behind"


def environment_of(process: subprocess.Popen[bytes]) -> dict[str, str]:
    texts = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    return dict(text.split("=", 1) for text in texts if "=" in text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--auth", "nobody"], "auth must be USER:PASSWORD"),
        (["--max-in-flight", "0"], "max_in_flight is 0"),
        (["--tls-key", "key.pem"], "--tls-certificate and --tls-key must come together"),
        (["--server", ","], "server is ','"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_sentence(options: list[str], sentence: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "frontend", *options], capture_output=True, text=True, timeout=60)
    assert ended.returncode
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
