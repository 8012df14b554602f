"""The One image tab in headless Chromium, in front of the real server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from captioner.client import Client
from captioner.examples import PHOTOS
from tests.support.pages import BROKEN, PHOTO, Open, Serve, caption_image, choose_image, fill_field
from tests.support.processes import forward, free_port
from tests.support.served import Served, metric

pytestmark = [pytest.mark.browser, pytest.mark.triton]

START, STOP = "#start", "#stop"
CAPTION, DETAILS, PROBLEM, SERVER = "#caption textarea", "#details", "#problem", "#server"
MAX_MS = 200


@pytest.fixture
def page(open_page: Open, page_url: str) -> Page:
    return open_page(page_url)


def test_captions_are_those_of_the_client_for_a_length_and_an_edited_prompt(
    page: Page, served: Served, tmp_path: Path
) -> None:
    with Client(served.grpc) as client:
        card, greedy = client.describe(), client.caption(PHOTO)
        lengths = card.styles[card.default_style]
        longest = client.caption(PHOTO, length=lengths[-1])
        prompted = client.caption(PHOTO, prompt="A close view of")
    (tmp_path / "photo").write_bytes(PHOTO.read_bytes())  # without a suffix
    choose_image(page, tmp_path / "photo")
    assert caption_image(page) == greedy.text
    facts = page.inner_text(DETAILS)
    assert greedy.details.model in facts
    assert greedy.details.revision[:7] in facts
    assert re.search(r"tokens\s+" + str(greedy.details.tokens), facts)
    assert page.locator("#length label:has(input)").all_inner_texts() == lengths
    page.locator("#length label:has(input)").last.click()
    expect(page.locator("#prompt textarea")).to_have_value(card.prompts[card.default_style][lengths[-1]])
    assert caption_image(page) == longest.text
    page.fill("#prompt textarea", "A close view of")
    assert caption_image(page) == prompted.text


def test_the_text_appears_while_it_is_generated(page: Page) -> None:
    choose_image(page, PHOTO)
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
    for _ in range(5):  # a fast server and a busy browser may show a short caption at once
        before = page.input_value("#caption textarea")
        page.evaluate("window.seen.clear()")
        final = caption_image(page)
        seen = set(page.evaluate("[...window.seen]")) - {before}
        assert all(final.startswith(text) for text in seen)
        if seen - {"", final}:
            return
    raise AssertionError(f"only whole captions were seen: {seen}")


BAD = {
    "IMAGE_BROKEN": ("broken.webp", BROKEN),
    "IMAGE_FORMAT_UNKNOWN": ("notes.txt", b"not an image at all"),
    "IMAGE_MISSING": ("empty.jpg", b""),
    "IMAGE_TOO_LARGE": ("large.jpg", b"\xff\xd8\xff" + bytes(20 * 2**20)),
}


@pytest.mark.parametrize(
    "code", [code if code == "IMAGE_BROKEN" else pytest.param(code, marks=pytest.mark.exhaustive) for code in BAD]
)
def test_no_image_and_a_bad_file_show_an_error_and_the_next_photo_is_captioned(
    page: Page, code: str, tmp_path: Path
) -> None:
    assert caption_image(page) == ""
    expect(page.locator(f"{PROBLEM} code")).to_have_text("IMAGE_MISSING")
    name, data = BAD[code]
    (tmp_path / name).write_bytes(data)
    choose_image(page, tmp_path / name)
    assert caption_image(page) == ""
    error = page.locator(f"{PROBLEM} .problem")
    expect(error.locator("code")).to_have_text(code)
    expect(error.locator("strong")).to_be_visible()
    choose_image(page, PHOTO)
    expect(error).to_have_count(0)
    assert caption_image(page)


def test_a_setting_out_of_range_is_shown_as_text_and_not_as_html(page: Page) -> None:
    choose_image(page, PHOTO)
    page.get_by_text("Advanced").click()
    for text in ("3", "<img src=x onerror=alert(1)>${alert(2)}{{x}}"):
        fill_field(page, "temperature", text)
        page.click(START)
        expect(page.locator(f"{PROBLEM} .problem")).to_contain_text(text)
        expect(page.locator(f"{PROBLEM} code")).to_have_text("PARAMETER_INVALID")
        assert page.locator(f"{PROBLEM} img").count() == 0


def press_stop_while_writing(page: Page) -> None:
    """Start a caption and click Stop in the first frame that shows text."""
    page.evaluate(
        """async () => {
            const of = (selector) => document.querySelector(selector);
            of("#start").click();
            for (let frame = 0; frame < 600; frame += 1) {  // a sampled caption may be empty
                if (!of("#stop").disabled && of("#caption textarea").value) break;
                await new Promise(requestAnimationFrame);
            }
            of("#stop").click();
        }"""
    )


def make_it_long(page: Page) -> None:
    page.get_by_text("Advanced").click()
    page.locator("#length label:has(input)").last.click()
    fill_field(page, "temperature", "2")
    fill_field(page, "max_tokens", "80")


def is_cancelled_in_time(served: Served, cancelled: float, act: Callable[[], object]) -> bool:
    """Return whether the server's metrics, which change every 50 ms, show the cancellation within MAX_MS of `act`."""
    act()
    deadline = time.monotonic() + MAX_MS / 1000
    while time.monotonic() < deadline:
        if metric(served, "captioner_cancelled_total") > cancelled and metric(served, "captioner_running") == 0:
            return True
        time.sleep(0.005)
    return False


def test_stop_cancels_the_decoding_within_200_ms_and_keeps_the_text(page: Page, served: Served) -> None:
    choose_image(page, PHOTO)
    make_it_long(page)
    for _ in range(20):  # a busy browser may click after all 80 tokens are generated
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
    assert caption_image(page)


def test_closing_the_tab_cancels_the_decoding_within_200_ms(open_page: Open, page_url: str, served: Served) -> None:
    for _ in range(20):
        page = open_page(page_url)
        choose_image(page, PHOTO)
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


def test_another_image_cancels_and_clears_the_caption(page: Page) -> None:
    choose_image(page, PHOTO)
    make_it_long(page)
    page.click(START)
    choose_image(page, PHOTOS[0])
    expect(page.locator(START)).to_be_enabled()
    expect(page.locator(CAPTION)).to_have_value("")
    assert page.locator(f"{DETAILS} .facts").count() == 0


def test_a_pasted_image_and_an_example_are_captioned_and_the_caption_can_be_copied(page: Page) -> None:
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.jpg", {type: "image/jpeg"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        list(PHOTO.read_bytes()),
    )
    expect(page.locator("#image-name")).to_have_text("pasted.jpg")
    pasted = caption_image(page)
    assert pasted
    page.get_by_role("button", name="Example cat").click()
    expect(page.locator("#image-name")).to_have_text(PHOTO.name)
    assert caption_image(page) == pasted
    page.click("#caption button[aria-label='Copy']")
    page.wait_for_function("(text) => navigator.clipboard.readText().then((copied) => copied === text)", arg=pasted)


@pytest.mark.parametrize("color", ["light", pytest.param("dark", marks=pytest.mark.exhaustive)])
def test_a_phone_shows_everything_without_horizontal_scrolling(open_page: Open, page_url: str, color: str) -> None:
    page = open_page(page_url, **({"color_scheme": "dark"} if color == "dark" else {}))
    page.set_viewport_size({"width": 390, "height": 844})
    choose_image(page, PHOTO)
    assert caption_image(page)
    page.get_by_text("Advanced").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in ("#image", START, STOP, CAPTION, DETAILS, "#seed"):
        box = page.locator(selector).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390, selector


def test_every_input_has_an_accessible_name(page: Page) -> None:
    page.get_by_role("tab", name="Batch").click()
    page.get_by_text("Advanced").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button")]
            .filter((e) => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.innerText || e.title))
            .map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_the_page_says_that_no_server_answers_and_works_when_one_does(
    open_page: Open, served: Served, serve_page: Serve
) -> None:
    port = free_port()
    page = open_page(serve_page(f"127.0.0.1:{port}", fast_polling=True))
    expect(page.locator(SERVER)).to_contain_text(f"No captioner server answers at 127.0.0.1:{port}.")
    choose_image(page, PHOTO)
    assert caption_image(page) == ""
    expect(page.locator(f"{PROBLEM} code")).to_have_text("SERVER_UNREACHABLE")
    with closing(forward(port, served.grpc)):
        expect(page.locator(f"{SERVER} .up")).to_be_visible()
        assert caption_image(page)
