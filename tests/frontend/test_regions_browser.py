"""The One image tab in headless Chromium: the places that a caption names are drawn over the image."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from captioner.wire import Region
from tests.support.pages import PHOTO, Open, caption_image, choose_image
from tests.support.scripted_server import DETAILS, ScriptedServer

pytestmark = pytest.mark.browser

SHAPES = "#image svg polygon"
EDGES = """selector => {
    const { left, top, right, bottom } = document.querySelector(selector).getBoundingClientRect();
    return [left, top, right, bottom];
}"""


@pytest.fixture
def page(open_page: Open, scripted_page_url: str) -> Page:
    page = open_page(scripted_page_url)
    expect(page.locator("#server .up")).to_be_visible()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    return page


def test_regions_are_drawn_where_they_are_and_leave_with_their_caption(
    page: Page, shared_scripted_server: ScriptedServer
) -> None:
    with Image.open(PHOTO) as photo:
        width, height = photo.size
    tilted = ((0, 9), (9, 0), (18, 9), (9, 18))
    places = (Region("a cat", box=(width // 4, height // 2, width, height)), Region("EXIT", polygon=tilted))
    size = replace(DETAILS.image, width=width, height=height)
    shared_scripted_server.details = replace(DETAILS, image=size, regions=places)
    choose_image(page, PHOTO)
    caption_image(page)
    expect(page.locator(SHAPES)).to_have_count(2)
    assert page.locator("#image svg text").all_text_contents() == ["a cat", "EXIT"]
    left, top, right, bottom = page.evaluate(EDGES, "#image img")
    expected = [left + (right - left) / 4, (top + bottom) / 2, right, bottom]
    assert page.evaluate(EDGES, f"{SHAPES}:first-child") == pytest.approx(expected, abs=2)

    shared_scripted_server.details = DETAILS
    page.click("#again")
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator(SHAPES)).to_have_count(0)

    shared_scripted_server.details = replace(DETAILS, image=size, regions=places)
    page.click("#again")
    expect(page.locator(SHAPES)).to_have_count(2)
    page.get_by_role("button", name="Example coffee").click()
    expect(page.locator(SHAPES)).to_have_count(0)
