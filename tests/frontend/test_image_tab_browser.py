"""The One image tab in headless Chromium: several captions of an image, what is remembered, images by address."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.pages import PHOTO, Open, Serve, caption_image, choose_image, fill_field
from tests.support.scripted_server import TEXT, ScriptedServer

pytestmark = pytest.mark.browser

CAPTION, TAKES, SAID = "#caption textarea", "#takes button", "#said"
OTHER = ("another ", "caption")
ADDRESS = "http://127.0.0.2/cats/one.jpg"  # refused before anything is looked up or contacted
TRANSFER = """([area, type, text]) => {
    const data = new DataTransfer();
    data.setData(type, text);
    if (area) document.querySelector(area).dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
    else document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
}"""


@pytest.fixture
def server(shared_scripted_server: ScriptedServer) -> ScriptedServer:
    server = shared_scripted_server
    server.pieces, server.piece_s, server.faults = (TEXT,), 0.0, []
    return server


@pytest.fixture
def page(open_page: Open, scripted_page_url: str, server: ScriptedServer) -> Page:
    return ready(open_page(scripted_page_url))


def ready(page: Page) -> Page:
    """Wait until the served model's choices are shown, and return the page."""
    expect(page.locator("#server .up")).to_be_visible()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    return page


def again(page: Page, text: str) -> None:
    page.click("#again")
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator(CAPTION)).to_have_value(text)


def test_again_writes_another_caption_and_the_ones_before_stay_to_choose_from(
    page: Page, server: ScriptedServer
) -> None:
    choose_image(page, PHOTO)
    assert caption_image(page) == TEXT
    expect(page.locator("#takes")).to_be_hidden()
    page.fill(CAPTION, "My own words")
    server.pieces = OTHER
    again(page, "".join(OTHER))
    assert server.seeds[-1] != server.seeds[-2]
    expect(page.locator(TAKES)).to_have_text(["My own words", "".join(OTHER)])
    page.get_by_role("button", name="My own words").click()
    expect(page.locator(CAPTION)).to_have_value("My own words")
    expect(page.get_by_role("button", name="My own words")).to_have_attribute("aria-pressed", "true")
    page.fill(CAPTION, "My own better words")
    page.get_by_role("button", name="".join(OTHER)).click()
    expect(page.locator(TAKES)).to_have_text(["My own better words", "".join(OTHER)])
    again(page, "".join(OTHER))
    expect(page.locator(TAKES)).to_have_count(2)
    page.get_by_role("button", name="Example cat").click()
    expect(page.locator("#takes")).to_be_hidden()


def test_again_samples_with_a_new_seed_unless_a_temperature_is_chosen(page: Page) -> None:
    warm = page.evaluate(
        """async () => {
            const { warmer } = await import("/browser/choice.js");
            const given = [{ seed: "7", num_beams: "3", style: "plain" }, { temperature: "0" }];
            return [...given, { temperature: "1.5", seed: "7" }].map(warmer);
        }"""
    )
    assert warm == [
        {"style": "plain", "temperature": "0.7", "top_p": "0.9"},
        {"temperature": "0.7", "top_p": "0.9"},
        {"temperature": "1.5"},
    ]


def test_the_caption_is_saved_as_a_text_file_named_after_the_image(page: Page) -> None:
    choose_image(page, PHOTO)
    caption_image(page)
    page.fill(CAPTION, "Häuser\nam See")
    with page.expect_download() as begun:
        page.click("#save")
    assert begun.value.suggested_filename == f"{PHOTO.stem}.txt"
    assert Path(begun.value.path()).read_text("utf-8") == "Häuser\nam See\n"


def test_a_caption_is_announced_once_when_it_has_ended(page: Page, server: ScriptedServer) -> None:
    choose_image(page, PHOTO)
    server.pieces, server.piece_s = tuple("a cat on a mat".partition("on")), 0.2
    page.evaluate(
        """() => {
            window.heard = [];
            const regions = document.querySelectorAll("[role=status], [role=alert], [aria-live]");
            const hear = ([{ target }]) => window.heard.push(target.textContent);
            for (const region of regions) {
                new MutationObserver(hear).observe(region, { childList: true, characterData: true, subtree: true });
            }
        }"""
    )
    caption_image(page)
    assert [text for text in page.evaluate("window.heard") if text] == [
        "Looking at the image", "Caption: a cat on a mat"
    ]  # fmt: skip


def test_choices_and_typed_texts_are_remembered_in_this_browser_until_they_are_forgotten(
    open_page: Open, page: Page, scripted_page_url: str
) -> None:
    page.get_by_label("Style").click()
    page.get_by_role("option", name="alt-text").click()
    expect(page.locator("#prompt textarea")).to_have_value("Alt.")
    fill_field(page, "max_characters", "80")
    fill_field(page, "prompt", "Write a rhyme.")
    page.get_by_text("Advanced").click()
    fill_field(page, "temperature", "1.5")
    page.wait_for_function("localStorage.getItem('captioner-choices')?.includes('1.5')")
    other = ready(open_page(scripted_page_url))
    expect(other.get_by_label("Style")).to_have_value("alt-text")
    expect(other.locator("#prompt textarea")).to_have_value("Write a rhyme.")
    expect(other.locator("#max_characters :is(input, textarea)")).to_have_value("80")
    other.get_by_text("Advanced").click()
    expect(other.locator("#temperature :is(input, textarea)")).to_have_value("1.5")
    other.click("#forget")
    expect(other.locator("#forgotten")).to_contain_text("Forgotten.")
    assert other.evaluate("localStorage.length") == 0
    third = ready(open_page(scripted_page_url))
    expect(third.get_by_label("Style")).to_have_value("plain")
    expect(third.locator("#prompt textarea")).to_have_value("Say much.")


@pytest.mark.parametrize(
    "kept",
    ["{", "[]", "7", '{"style": 7, "extras": "x", "prompt": null}', '{"style": "unknown", "extras": ["unknown"]}'],
)
def test_a_page_opens_whatever_the_browser_has_stored(open_page: Open, scripted_page_url: str, kept: str) -> None:
    stored = {"origin": scripted_page_url, "localStorage": [{"name": "captioner-choices", "value": kept}]}
    page = open_page(scripted_page_url, storage_state={"cookies": [], "origins": [stored]})
    expect(ready(page).get_by_label("Style")).to_have_value("plain")


def test_a_page_without_allowed_hosts_says_that_it_fetches_no_image(page: Page, server: ScriptedServer) -> None:
    for area, kind in (("#image", "text/uri-list"), (None, "text/plain")):
        choose_image(page, PHOTO)
        page.evaluate(TRANSFER, [area, kind, ADDRESS])
        expect(page.locator("#image-note")).to_contain_text("This server does not fetch images from other sites.")
        assert page.input_value(CAPTION) == ""


def test_an_image_dragged_from_another_page_or_pasted_as_an_address_is_sent_as_an_address(
    open_page: Open, serve_page: Serve, server: ScriptedServer
) -> None:
    page = ready(open_page(serve_page(server.address, "--image-host", "127.0.0.2")))
    for area, kind in (("#image", "text/uri-list"), (None, "text/plain")):
        choose_image(page, PHOTO)
        page.evaluate(TRANSFER, [area, kind, ADDRESS])
        expect(page.locator("#image-name")).to_have_text(ADDRESS)
        with page.expect_request("**/v1/captions") as sent:
            page.click("#start")
        assert ADDRESS in (sent.value.post_data or "")
        expect(page.locator("#problem code")).to_have_text("IMAGE_URL_REFUSED")
        page.click("#remove")
        expect(page.locator("#image-name")).to_have_text("")


def test_an_address_pasted_into_a_text_field_stays_text(page: Page) -> None:
    choose_image(page, PHOTO)
    page.evaluate("(text) => navigator.clipboard.writeText(text)", ADDRESS)
    page.focus("#prompt textarea")
    page.keyboard.press("Control+a")
    page.keyboard.press("Control+v")
    expect(page.locator("#prompt textarea")).to_have_value(ADDRESS)
    expect(page.locator("#image-name")).to_have_text(PHOTO.name)


def test_an_image_of_the_page_itself_and_a_data_url_can_be_dropped(page: Page) -> None:
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw=="
    for address, name in ((page.url + "examples/cat.jpg", "cat.jpg"), (pixel, "image")):
        page.evaluate(TRANSFER, ["#image", "text/uri-list", address])
        expect(page.locator("#image-name")).to_have_text(name)


def test_a_line_says_that_images_are_not_kept(page: Page) -> None:
    expect(page.locator("#kept")).to_contain_text("The server does not keep it.")
