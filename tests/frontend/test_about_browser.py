"""What the page tells of the model that is served, in headless Chromium, in front of a server that has only a card."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.cards import CARD, REVISION, CardServer
from tests.support.pages import Open, Serve, fill_field

pytestmark = pytest.mark.browser

ABOUT, SERVER = "#about", "#server .server"
SEEN_AGAIN = "document.dispatchEvent(new Event('visibilitychange'))"
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
    return serve_page(server.address)


def opened(page: Page) -> Page:
    """The same page with the disclosure open, as the keyboard opens it."""
    expect(page.locator(ABOUT)).to_be_visible()
    page.locator(f"{ABOUT} summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator(f"{ABOUT} dl")).to_be_visible()
    return page


def told(page: Page) -> dict[str, str]:
    """What stands there, by its name."""
    pairs = page.locator(f"{ABOUT} dl > div").all()
    return {pair.locator("dt").inner_text(): pair.locator("dd").inner_text() for pair in pairs}


def test_the_page_tells_the_card_and_leads_to_the_hub_at_the_very_commit(open_page: Open, url: str) -> None:
    page = opened(open_page(url))
    found = told(page)
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


def test_the_whole_commit_can_be_copied(open_page: Open, url: str) -> None:
    page = opened(open_page(url, permissions=["clipboard-read", "clipboard-write"]))
    page.get_by_role("button", name="Copy the commit").press("Enter")
    expect(page.locator(f"{ABOUT} [role=status]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == REVISION


def test_a_local_model_without_a_card_leads_nowhere_and_says_what_is_not_known(
    open_page: Open, url: str, server: CardServer
) -> None:
    server.card = replace(CARD, model="my-model", license="", base_model="", intended_use="")
    page = opened(open_page(url))
    found = told(page)
    assert (found["Licence"], found["Base model"], found["Intended use"]) == ("not stated",) * 3
    assert page.locator(f"{ABOUT} a").count() == 0


def test_what_a_stranger_wrote_stays_text_and_is_cut(open_page: Open, url: str, server: CardServer) -> None:
    page = open_page(url, viewport={"width": 390, "height": 844})
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
    expect(page.locator(SERVER)).to_contain_text(f"{script}{markdown}", timeout=30_000)
    found = told(opened(page))
    assert found["Model"] == f"{script}{markdown}"
    assert found["Licence"] == server.card.license
    assert found["Intended use"].startswith(f"{script}{markdown} <svg onload=alert(6)> 猫猫")
    assert 500 < len(found["Intended use"]) <= 600 and found["Intended use"].endswith("…")
    assert page.locator(":is(#about, #server) :is(script, img, svg, b, strong, em)").count() == 0
    assert [link.inner_text() for link in page.locator(":is(#about, #server) a").all()] == ["owner/base"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("window.ran") is None


def test_an_open_page_follows_the_served_version_and_keeps_what_was_written(
    open_page: Open, url: str, server: CardServer
) -> None:
    page = opened(open_page(url))
    fill_field(page, "prompt", "Write a rhyme.")
    fill_field(page, "max_characters", "80")
    other = REVISION[::-1]
    server.card = replace(CARD, revision=other, version="2", styles={"plain": ["short", "long", "longest"]})
    expect(page.locator(f"{ABOUT} code")).to_have_text(other, timeout=30_000)
    expect(page.locator(SERVER)).to_contain_text(other[:7])
    expect(page.locator("#length label:has(input)")).to_have_count(3)
    assert told(page)["Version"] == "2", "it is still open"
    assert page.input_value("#prompt textarea") == "Write a rhyme."
    assert page.input_value("#max_characters :is(input, textarea)") == "80"


def test_a_page_whose_own_server_is_away_for_a_moment_loses_nothing(
    browser: Browser, server: CardServer, serve_page: Serve, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    url = serve_page(server.address)
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#stop:disabled")
    expect(page.locator(ABOUT)).to_be_visible()
    fill_field(page, "prompt", "Write a rhyme.")
    processes[url].kill()
    processes[url].wait()
    for _ in range(3):
        with page.expect_event("requestfailed"):
            page.evaluate(SEEN_AGAIN)
    expect(page.get_by_text("Connection to the server was lost")).to_have_count(0)
    assert page.input_value("#prompt textarea") == "Write a rhyme."
    page.close()
