"""The page without a browser: its messages, what it offers for a model's card, its command line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import pytest

from captioner import examples
from captioner.client import AsyncClient
from captioner.errors import CaptionerError, ImageMissing, ServerUnreachable
from captioner.image.formats import FORMATS, SUFFIXES, is_image
from captioner.wire import CSV_COLUMNS, FinishReason, ModelCard
from frontend import private_log
from frontend.model_card_cache import ModelCardCache
from frontend.page import fields, html, messages, theme
from frontend.page.page import Page
from tests.support.api_server import DEAD
from tests.support.cards import CARD
from tests.support.pages import Serve
from tests.support.processes import Process


class CardClient(AsyncClient):
    """A client whose server has the card `card`."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(DEAD)
        self.card = card

    async def describe(self) -> ModelCard:
        return self.card


async def make_page(client: AsyncClient) -> Page:
    """Return a Page. In a running event loop, because without one Gradio creates loops and does not close them."""
    return Page(ModelCardCache(client))


@pytest.fixture(scope="module")
def page() -> Page:
    return asyncio.run(make_page(CardClient(CARD)))


def test_an_event_that_fails_is_logged_without_what_the_visitor_sent(
    page: Page, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    function = next(iter(page.blocks.fns.values()))
    with pytest.raises(gr.Error, match="the server's log has the cause") as raised:
        asyncio.run(page.blocks.process_api(function, ["a secret prompt"]))
    assert not raised.value.print_exception, "Gradio itself would print the error"
    assert "an event of the page failed: ValueError" in caplog.text
    assert "a secret prompt" not in caplog.text + "".join(capsys.readouterr())


def test_the_pages_log_has_no_message_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())  # restored after the test
    private_log.install()
    text = io.StringIO()
    log = logging.Logger("a library's")
    log.addHandler(logging.StreamHandler(text))
    try:
        int("a secret prompt")
    except ValueError:
        log.exception("it failed")
    assert "it failed\nValueError\n" in text.getvalue() and __file__ in text.getvalue()
    assert "invalid literal" not in text.getvalue()


def test_the_browser_gets_the_servers_tables() -> None:
    data = json.loads(messages.for_the_browser(image_urls=False))
    assert data["headings"].keys() == CaptionerError.by_code.keys()
    assert data["headings"][ImageMissing.code] == messages.HEADINGS[ImageMissing]
    assert data["finish_reasons"].keys() == set(get_args(FinishReason))
    assert data["fields"] == list(fields.NAMES)
    assert all(is_image(f"a{suffix}") for suffix in data["image_suffixes"]) and ".jfif" in data["image_suffixes"]
    assert data["csv_columns"] == list(CSV_COLUMNS)


def test_the_file_inputs_accept_every_supported_image_format() -> None:
    types = ",".join([*(each.mime for each in FORMATS), *SUFFIXES])
    assert f'id="image-file" accept="{types}"' in html.IMAGE
    assert f'accept="{types},.zip"' in html.FILES


def test_messages_cannot_close_their_script_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(messages.HEADINGS, CaptionerError, "</script><script>alert(1)")
    script = theme.head("", image_urls=False).split("</script>")
    assert len(script) == 3
    assert "alert(1)" in json.loads(script[0].partition(">")[2])["headings"]["INTERNAL"]


def choose(page: Page, style: str, length: str | None) -> dict[Any, Any]:
    return asyncio.run(page.select_style(style, length, [], ""))


def test_the_lengths_and_the_prompt_follow_the_style(page: Page) -> None:
    plain = choose(page, "plain", None)
    assert (plain[page.length].value, plain[page.prompt]) == ("long", "Say much.")
    assert plain[page.length].visible
    tags = choose(page, "tags", "long")
    assert (tags[page.length].value, tags[page.prompt]) == ("short", "Tags.")
    assert not tags[page.length].visible, "a single length is not offered"
    free = choose(page, "free", "long")
    assert (free[page.length].value, free[page.prompt]) == (None, "")


def test_the_name_field_is_visible_only_if_the_prompt_has_a_name(page: Page) -> None:
    plain = asyncio.run(page.render_prompt("plain", "short", ["name"], "Ada"))
    assert plain[page.prompt] == plain[page.rendered] == "Say little. It is Ada."
    assert plain[page.name]["visible"]
    assert not asyncio.run(page.render_prompt("plain", "short", [], "Ada"))[page.name]["visible"]


def test_a_language_is_offered_and_shown_in_the_prompt_if_the_model_takes_one() -> None:
    card = replace(CARD, takes_language=True, language_prompt="Write {language}.")
    page = asyncio.run(make_page(CardClient(card)))
    fields = ("",) * len(page.fields)
    shown = asyncio.run(page.restore("", "", "plain", "long", [], "", " de ", "", *fields))
    assert shown[page.language]["visible"] and shown[page.language]["value"] == " de "
    assert shown[page.prompt] == shown[page.rendered] == "Say much. Write German."
    assert choose(page, "plain", "long")[page.prompt] == "Say much."


def test_a_field_that_is_hidden_holds_nothing_that_would_be_sent(page: Page) -> None:
    fields = ("",) * len(page.fields)
    shown = asyncio.run(page.restore("", "", "plain", "long", [], "Ada", "German", "", *fields))
    for field in (page.language, page.name):
        assert (shown[field]["visible"], shown[field]["value"]) == (False, "")
    assert shown[page.prompt] == "Say much."


def test_only_the_alt_text_style_sets_a_limit_of_characters(page: Page) -> None:
    assert choose(page, "alt-text", None)[page.limit] == "125"
    assert choose(page, "plain", None)[page.limit] == ""
    longer = asyncio.run(page.select_length("alt-text", "long", [], ""))
    assert longer[page.limit] == "500"
    assert page.limit not in asyncio.run(page.select_length("plain", "long", [], "")), "a typed limit stays"


def test_the_page_says_that_no_server_answers() -> None:
    page = asyncio.run(make_page(AsyncClient(DEAD)))
    shown = asyncio.run(page.refresh_model(None, None, [], None, None, "", ""))
    assert f"No captioner server answers at {DEAD}." in shown[page.server]


def test_a_valid_selection_and_an_edited_prompt_survive_a_new_version() -> None:
    client = CardClient(CARD)
    page = asyncio.run(make_page(client))
    first = asyncio.run(page.refresh_model(None, None, None, None, None, None, None))
    assert (first[page.style].value, first[page.prompt], first[page.limit]) == ("plain", "Say much.", "")
    client.card = replace(CARD, version="2", styles={"plain": ["long"]}, prompts={"plain": {"long": "Say all."}})
    other = asyncio.run(page.refresh_model("plain", "short", [], "", "", "Say much.", "Say much."))
    assert (other[page.style].value, other[page.length].value, other[page.prompt]) == ("plain", "long", "Say all.")
    assert page.limit not in other
    own = asyncio.run(page.refresh_model("tags", "short", [], "", "", "Write a rhyme.", "Tags."))
    assert (own[page.style].value, own[page.rendered]) == ("plain", "Say all."), "the new version has no style tags"
    assert page.prompt not in own


def test_the_last_card_is_kept_while_the_server_is_unreachable() -> None:
    client = CardClient(CARD)
    cards = ModelCardCache(client)
    assert asyncio.run(cards.last()) == CARD

    async def fail() -> ModelCard:
        raise ServerUnreachable("no server")

    client.describe = fail  # type: ignore[method-assign]
    cards._fetched = -inf
    assert asyncio.run(cards.last()) == CARD
    with pytest.raises(ServerUnreachable):
        asyncio.run(cards.get())


def test_the_examples_are_small_and_credited() -> None:
    assert len(examples.PHOTOS) >= 2
    credit = (examples.FOLDER / "CREDITS.md").read_text()
    for example in examples.PHOTOS:
        assert example.stat().st_size <= 60_000, example
        assert f"`{example.name}`" in credit


def test_the_page_starts_rejects_uploads_and_leaves_no_files(serve_page: Serve, processes: dict[str, Process]) -> None:
    url = serve_page(DEAD)
    process = processes[url]
    with urllib.request.urlopen(f"{url}/config", timeout=30) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert "/" not in json.dumps(config["footer_links"]), "no links to other hosts"
    assert not any(d["queue"] for d in config["dependencies"]), "only one replica would know a queue's result"
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
    assert list(scratch.iterdir()) == [], "the page left files"


def environment_of(process: Process) -> dict[str, str]:
    texts = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    return dict(text.split("=", 1) for text in texts if "=" in text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--auth", "nobody"], "auth must be USER:PASSWORD"),
        (["--max-in-flight", "0"], "max_in_flight is 0"),
        (["--tls-key", "key.pem"], "--tls-certificate and --tls-key must be given together"),
        pytest.param(["--server", ","], "server is ','", marks=pytest.mark.exhaustive),
    ],
)
def test_an_invalid_option_is_reported_without_a_traceback(options: list[str], message: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "frontend", *options], capture_output=True, text=True, timeout=60)
    assert ended.returncode
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
