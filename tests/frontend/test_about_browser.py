"""The model's card on the page, in headless Chromium, in front of a server that has only a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.cards import CARD, REVISION, CardServer
from tests.support.pages import Open, Serve, fill_field
from tests.support.processes import Process

pytestmark = pytest.mark.browser

ABOUT, SERVER = "#about", "#server .server"
POLL = "document.dispatchEvent(new Event('visibilitychange'))"
HUB = "https://huggingface.co"


@pytest.fixture(scope="module")
def server() -> Iterator[CardServer]:
    server = CardServer(CARD)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def first_card(server: CardServer) -> None:
    server.card = CARD


@pytest.fixture(scope="module")
def url(server: CardServer, serve_page: Serve) -> str:
    return serve_page(server.address, fast_polling=True)


def opened(page: Page) -> Page:
    """Open the disclosure by keyboard and return the page."""
    expect(page.locator(ABOUT)).to_be_visible()
    page.locator(f"{ABOUT} summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator(f"{ABOUT} dl")).to_be_visible()
    return page


def shown(page: Page) -> dict[str, str]:
    """Return the shown values by name."""
    pairs = page.locator(f"{ABOUT} dl > div").all()
    return {pair.locator("dt").inner_text(): pair.locator("dd").inner_text() for pair in pairs}


def test_the_page_shows_the_card_links_to_the_hub_and_copies_the_commit(open_page: Open, url: str) -> None:
    page = opened(open_page(url))
    found = shown(page)
    assert REVISION in found.pop("Commit")
    assert found == {
        "Model": "owner/model",
        "Version": "1",
        "Device": "cpu",
        "Precision": "decoder int8, encoder fp32",
        "Licence": "mit",
        "Base model": "owner/base",
        "Intended use": "To try things out.",
    }
    links = page.locator(f"{ABOUT} a")
    addresses = [link.get_attribute("href") for link in links.all()]
    assert addresses == [f"{HUB}/owner/model", f"{HUB}/owner/model/commit/{REVISION}", f"{HUB}/owner/base"]
    assert all(link.get_attribute("rel") == "noopener noreferrer" for link in links.all())
    page.get_by_role("button", name="Copy the commit").press("Enter")
    expect(page.locator(f"{ABOUT} [role=status]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == REVISION


def test_a_local_model_without_a_card_has_no_links_and_says_not_stated(
    open_page: Open, url: str, server: CardServer
) -> None:
    server.card = replace(CARD, model="my-model", license="", base_model="", intended_use="")
    page = opened(open_page(url))
    expect(page.locator(SERVER)).to_contain_text("my-model")
    expect(page.locator(f"{ABOUT} dl")).to_contain_text("my-model")
    found = shown(page)
    assert (found["Licence"], found["Base model"], found["Intended use"]) == ("not stated",) * 3
    assert page.locator(f"{ABOUT} a").count() == 0


def test_an_untrusted_card_stays_text_and_is_cut(open_page: Open, url: str, server: CardServer) -> None:
    page = open_page(url)
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("() => { window.alert = () => (window.ran = true); }")
    script, markdown = "<script>alert(1)</script>", "[here](https://evil.example) **now** ${alert(2)} {{alert(3)}}"
    server.card = replace(
        CARD,
        model=f"{script}{markdown}",
        revision='"><img src=x onerror=alert(4)>',
        license=f"javascript:alert(5) {markdown}",
        base_model=f"../etc, a/../b, {script}, owner/base",
        intended_use=f"{script}{markdown} <svg onload=alert(6)> " + "猫" * 500 + " word" * 500,
        device="<b>cpu</b>",
    )
    expect(page.locator(SERVER)).to_contain_text(f"{script}{markdown}")
    found = shown(opened(page))
    assert found["Model"] == f"{script}{markdown}"
    assert found["Licence"] == server.card.license
    assert found["Intended use"].startswith(f"{script}{markdown} <svg onload=alert(6)> 猫猫")
    assert 500 < len(found["Intended use"]) <= 600 and found["Intended use"].endswith("…")
    assert page.locator(":is(#about, #server) :is(script, img, svg, b, strong, em)").count() == 0
    assert [link.inner_text() for link in page.locator(":is(#about, #server) a").all()] == ["owner/base"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("window.ran") is None


def test_an_open_page_follows_the_served_version_and_keeps_edited_fields(
    open_page: Open, url: str, server: CardServer
) -> None:
    page = opened(open_page(url))
    fill_field(page, "prompt", "Write a rhyme.")
    fill_field(page, "max_characters", "80")
    other = REVISION[::-1]
    server.card = replace(CARD, revision=other, version="2", styles={"plain": ["short", "long", "longest"]})
    expect(page.locator(f"{ABOUT} code")).to_have_text(other)
    expect(page.locator(SERVER)).to_contain_text(other[:7])
    expect(page.locator("#length label:has(input)")).to_have_count(3)
    assert shown(page)["Version"] == "2", "the disclosure is still open"
    assert page.input_value("#prompt textarea") == "Write a rhyme."
    assert page.input_value("#max_characters :is(input, textarea)") == "80"


def test_a_page_keeps_its_fields_while_its_own_server_is_down(
    browser: Browser, url: str, processes: dict[str, Process]
) -> None:
    """The last test of this module, because it kills the server of `url`."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#stop:disabled")
    expect(page.locator(ABOUT)).to_be_visible()
    fill_field(page, "prompt", "Write a rhyme.")
    processes[url].kill()
    processes[url].wait(20)
    for _ in range(3):
        with page.expect_event("requestfailed"):
            page.evaluate(POLL)
    expect(page.get_by_text("Connection to the server was lost")).to_have_count(0)
    assert page.input_value("#prompt textarea") == "Write a rhyme."
    page.close()
