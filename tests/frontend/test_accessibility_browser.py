"""axe-core finds no violation on the page, on a wide and on a narrow screen, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize, expect

from captioner.examples import PHOTOS
from tests.support.pages import PHOTO, Open, caption_image, choose_image
from tests.support.scripted_server import ScriptedServer

pytestmark = pytest.mark.browser

SIZES: list[ViewportSize] = [{"width": 1280, "height": 900}, {"width": 390, "height": 900}]


def violations(page: Page, when: str) -> list[str]:
    """Return what axe-core reports on a wide and on a narrow screen, one line for each element."""
    found = []
    for size in reversed(SIZES):
        page.set_viewport_size(size)
        found += [
            f"{when}, {size['width']} px: {rule['id']}: {node['html'][:150]}: {node['failureSummary']}"
            for rule in Axe().run(page).response["violations"]
            for node in rule["nodes"]
        ]
    return found


@pytest.mark.parametrize("color", ["light", "dark"])
def test_axe_finds_no_violation(
    open_page: Open, scripted_page_url: str, shared_scripted_server: ScriptedServer, color: str, tmp_path: Path
) -> None:
    page = open_page(scripted_page_url, color_scheme=color, viewport=SIZES[0])
    expect(page.locator("#about")).to_be_visible()
    found = violations(page, "empty")
    for selector in ("#advanced button", "#about summary", "#examples summary"):
        page.locator(selector).first.click()
    page.click("#start")
    expect(page.locator("#problem .problem")).to_be_visible()
    found += violations(page, "with an error")
    choose_image(page, PHOTO)
    caption_image(page)
    page.fill("#caption textarea", "My own words")
    page.click("#again")
    expect(page.locator("#takes button")).to_have_count(2)
    found += violations(page, "with captions")
    page.get_by_role("tab", name="Batch").click()
    (tmp_path / "note.jxl").write_bytes(b"?")
    page.set_input_files("#files-file", [*PHOTOS, tmp_path / "note.jxl"])
    shared_scripted_server.poison = PHOTOS[-1].read_bytes()
    page.click("#start-batch")
    expect(page.locator("#progress-text")).to_contain_text("1 failed")
    shared_scripted_server.poison = b""
    expect(page.locator("#start-batch:enabled")).to_be_visible()
    page.fill("#rows li:last-child textarea", "My own words")
    for selector in ("#left-out summary", "#replace summary"):
        page.click(selector)
    found += violations(page, "a batch")
    page.click("#clear")
    expect(page.get_by_role("dialog")).to_be_visible()
    found += violations(page, "a question")
    assert not found, "\n".join(found)
