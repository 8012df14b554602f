"""The page in headless Chromium, in front of the real server."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from captioner.client import Client
from captioner.examples import PHOTOS
from tests.support.pages import BROKEN, PHOTO, Open, Serve, fill_field, free_port
from tests.support.served import Served, metric

pytestmark = [pytest.mark.browser, pytest.mark.triton]

FILE, START, STOP = "#image-file", "#start", "#stop"
CAPTION, DETAILS, PROBLEM, SERVER = "#caption textarea", "#details", "#problem", "#server"


@pytest.fixture
def page(open_page: Open, page_url: str) -> Page:
    return open_page(page_url)


def choose(page: Page, image: Path) -> None:
    """Puts a file into the page and waits until it is there."""
    page.set_input_files(FILE, image)
    expect(page.locator("#image-name")).to_have_text(image.name)


def caption(page: Page) -> str:
    """Presses Caption and waits for the end of it."""
    ended = f"{DETAILS} .facts, {PROBLEM} .problem"
    before = page.query_selector(ended)
    page.click(START)
    if before is not None:
        before.wait_for_element_state("hidden")
    page.wait_for_selector(ended)
    expect(page.locator(START)).to_be_enabled()
    return page.input_value(CAPTION)


def test_an_upload_gets_the_greedy_caption_of_the_client_and_its_details(page: Page, served: Served) -> None:
    with Client(served.grpc) as client:
        greedy = client.caption(PHOTO)
    choose(page, PHOTO)
    assert caption(page) == greedy.text
    facts = page.inner_text(DETAILS)
    assert greedy.details.model in facts
    assert greedy.details.revision[:7] in facts
    assert re.search(r"tokens\s+" + str(greedy.details.tokens), facts)


def test_the_text_appears_as_it_is_written(page: Page) -> None:
    choose(page, PHOTO)
    page.evaluate(
        """() => {
            window.seen = new Set();
            const look = () => {
                window.seen.add(document.querySelector("#caption textarea").value);
                requestAnimationFrame(look);
            };
            look();
        }"""
    )
    page.get_by_text("Advanced").click()
    fill_field(page, "temperature", "2")
    fill_field(page, "max_tokens", "80")
    final = caption(page)
    seen = page.evaluate("[...window.seen]")
    assert any(text not in ("", final) for text in seen), seen  # how many more is the machine's speed
    assert all(final.startswith(text) for text in seen)


def test_the_lengths_of_the_card_are_offered_and_sent(page: Page, served: Served) -> None:
    with Client(served.grpc) as client:
        card = client.describe()
        lengths = card.styles[card.default_style]
        longest = client.caption(PHOTO, length=lengths[-1])
    assert page.locator("#length label:has(input)").all_inner_texts() == lengths
    choose(page, PHOTO)
    page.locator("#length label:has(input)").last.click()
    expect(page.locator("#prompt textarea")).to_have_value(card.prompts[card.default_style][lengths[-1]])
    assert caption(page) == longest.text


def test_an_edited_prompt_is_sent_as_it_is(page: Page, served: Served) -> None:
    with Client(served.grpc) as client:
        prompted = client.caption(PHOTO, prompt="A close view of")
    choose(page, PHOTO)
    page.fill("#prompt textarea", "A close view of")
    assert caption(page) == prompted.text


BAD = {
    "IMAGE_BROKEN": ("broken.webp", BROKEN),
    "IMAGE_FORMAT_UNKNOWN": ("notes.txt", b"not an image at all"),
    "IMAGE_MISSING": ("empty.jpg", b""),
    "IMAGE_TOO_LARGE": ("large.jpg", b"\xff\xd8\xff" + bytes(20 * 2**20)),
}


@pytest.mark.parametrize("code", BAD)
def test_a_bad_file_is_refused_in_words_and_the_next_photo_is_captioned(page: Page, code: str, tmp_path: Path) -> None:
    name, data = BAD[code]
    (tmp_path / name).write_bytes(data)
    choose(page, tmp_path / name)
    assert caption(page) == ""
    refusal = page.locator(f"{PROBLEM} .problem")
    expect(refusal.locator("code")).to_have_text(code)
    expect(refusal.locator("strong")).to_be_visible()
    choose(page, PHOTO)
    expect(refusal).to_have_count(0)
    assert caption(page)


def test_no_image_is_said_in_words(page: Page) -> None:
    assert caption(page) == ""
    expect(page.locator(f"{PROBLEM} code")).to_have_text("IMAGE_MISSING")


def test_a_photo_whose_name_tells_nothing_is_captioned(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(PHOTO.read_bytes())
    choose(page, tmp_path / "photo")
    assert caption(page)


def test_a_setting_out_of_range_is_refused_in_words_and_no_markup(page: Page) -> None:
    choose(page, PHOTO)
    page.get_by_text("Advanced").click()
    for text in ("3", "<img src=x onerror=alert(1)>${alert(2)}{{x}}"):
        fill_field(page, "temperature", text)
        page.click(START)
        expect(page.locator(f"{PROBLEM} .problem")).to_contain_text(text)
        expect(page.locator(f"{PROBLEM} code")).to_have_text("PARAMETER_INVALID")
        assert page.locator(f"{PROBLEM} img").count() == 0


def press_stop_while_writing(page: Page) -> None:
    """Starts a long caption and ends it at its first text, as fast as the page can."""
    page.evaluate(
        """async () => {
            const of = (selector) => document.querySelector(selector);
            of("#start").click();
            while (of("#stop").disabled || !of("#caption textarea").value) await new Promise(requestAnimationFrame);
            of("#stop").click();
        }"""
    )


def make_it_long(page: Page) -> None:
    page.get_by_text("Advanced").click()
    page.locator("#length label:has(input)").last.click()
    fill_field(page, "temperature", "2")
    fill_field(page, "max_tokens", "80")


ENDED_MS = 200


def is_cancelled_in_time(served: Served, cancelled: float, act: Callable[[], object]) -> bool:
    """Whether the server's gauges show the end of the decoding within ENDED_MS of `act`; they are shown every 50 ms."""
    act()
    end = time.monotonic() + ENDED_MS / 1000
    while time.monotonic() < end:
        if metric(served, "captioner_cancelled_total") > cancelled and metric(served, "captioner_running") == 0:
            return True
        time.sleep(0.005)
    return False


def test_stop_ends_the_decoding_within_200_ms_and_keeps_what_was_written(page: Page, served: Served) -> None:
    choose(page, PHOTO)
    make_it_long(page)
    for _ in range(20):  # eighty tokens may be written before a busy browser is heard
        cancelled = metric(served, "captioner_cancelled_total")
        in_time = is_cancelled_in_time(served, cancelled, lambda: press_stop_while_writing(page))
        expect(page.locator(START)).to_be_enabled()
        if in_time:
            break
        time.sleep(0.3)
    assert in_time
    expect(page.locator(DETAILS)).to_contain_text("Stopped.")
    assert page.input_value(CAPTION)
    tokens = metric(served, "captioner_tokens_total")
    time.sleep(0.3)
    assert metric(served, "captioner_tokens_total") == tokens
    assert caption(page)


def test_closing_the_tab_ends_the_decoding_within_200_ms(open_page: Open, page_url: str, served: Served) -> None:
    for _ in range(20):
        page = open_page(page_url)
        choose(page, PHOTO)
        make_it_long(page)
        cancelled = metric(served, "captioner_cancelled_total")
        page.evaluate(
            """async () => {
                document.querySelector("#start").click();
                while (!document.querySelector("#caption textarea").value) await new Promise(requestAnimationFrame);
            }"""
        )
        if in_time := is_cancelled_in_time(served, cancelled, page.close):
            break
    assert in_time


def test_another_image_ends_and_clears_the_caption_of_the_last(page: Page) -> None:
    choose(page, PHOTO)
    make_it_long(page)
    page.click(START)
    choose(page, PHOTOS[0])
    expect(page.locator(START)).to_be_enabled()
    expect(page.locator(CAPTION)).to_have_value("")
    assert page.locator(f"{DETAILS} .facts").count() == 0


def test_a_pasted_image_is_captioned_and_so_is_an_example(page: Page) -> None:
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.jpg", {type: "image/jpeg"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        list(PHOTO.read_bytes()),
    )
    expect(page.locator("#image-name")).to_have_text("pasted.jpg")
    pasted = caption(page)
    assert pasted
    page.get_by_role("button", name="Example cat").click()
    expect(page.locator("#image-name")).to_have_text(PHOTO.name)
    assert caption(page) == pasted


def test_the_caption_can_be_copied(open_page: Open, page_url: str) -> None:
    page = open_page(page_url, permissions=["clipboard-read", "clipboard-write"])
    choose(page, PHOTO)
    text = caption(page)
    page.click("#caption button[aria-label='Copy']")
    page.wait_for_function("(text) => navigator.clipboard.readText().then((copied) => copied === text)", arg=text)


@pytest.mark.parametrize("colour", ["light", "dark"])
def test_a_narrow_screen_shows_everything_without_scrolling_sideways(
    open_page: Open, page_url: str, colour: str
) -> None:
    page = open_page(page_url, viewport={"width": 390, "height": 844}, color_scheme=colour)
    choose(page, PHOTO)
    assert caption(page)
    page.get_by_text("Advanced").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in ("#image", START, STOP, CAPTION, DETAILS, "#seed"):
        box = page.locator(selector).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390, selector


def test_every_input_has_a_name_for_those_who_do_not_see_it(page: Page) -> None:
    page.get_by_role("tab", name="Batch").click()
    page.get_by_text("Advanced").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button")]
            .filter((e) => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.innerText || e.title))
            .map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_the_page_says_that_no_server_answers_and_works_once_one_does(
    open_page: Open, served: Served, serve_page: Serve
) -> None:
    port = free_port()
    page = open_page(serve_page(f"127.0.0.1:{port}"))
    expect(page.locator(SERVER)).to_contain_text(f"No captioner server answers at 127.0.0.1:{port}.")
    choose(page, PHOTO)
    assert caption(page) == ""
    expect(page.locator(f"{PROBLEM} code")).to_have_text("SERVER_UNREACHABLE")
    with closing(forward(port, served.grpc)):
        expect(page.locator(f"{SERVER} .up")).to_be_visible(timeout=30_000)
        assert caption(page)


def forward(port: int, address: str) -> socket.socket:
    """The server's door at another port too, until the returned socket is closed."""
    listener = socket.create_server(("127.0.0.1", port))
    host, _, target = address.rpartition(":")

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def join(near: socket.socket) -> None:
        with near, socket.create_connection((host, int(target))) as far:
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=join, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener
