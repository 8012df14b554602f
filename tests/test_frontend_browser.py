"""The page in a real browser, on the real server: what a person does and sees."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.images import EXAMPLES
from captioner.client import Client
from tests.served import ROOT, Served, metric

pytestmark = [pytest.mark.browser, pytest.mark.triton]

PHOTO = EXAMPLES / "cat.jpg"
BROWSER = "/usr/bin/chromium"
# Without these, Chromium looks for hosts of its own at every start.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SHOWN_MS = 30_000


@pytest.fixture(scope="module")
def address(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's own, served as `captioner up` does it."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    command = [sys.executable, "-m", "frontend", "--server", served.grpc, "--port", str(port)]
    log = tmp_path_factory.mktemp("page") / "page.log"
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """A fresh tab, wide; it must ask nobody but the page's server and complain of nothing."""
    foreign: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else foreign.append(r.url))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(address)
        expect(page.locator("#length")).to_be_visible(timeout=SHOWN_MS)
        yield page
        browser.close()
    assert not foreign, foreign
    assert not complaints, complaints


def upload(page: Page, file: Path) -> None:
    page.locator("#image input[type=file]").first.set_input_files(file)
    expect(page.locator("#image img").first).to_be_visible(timeout=SHOWN_MS)


def caption_of(page: Page) -> str:
    return page.locator("#caption textarea").input_value()


def wait_for_the_end(page: Page) -> None:
    expect(page.locator("#details dl, #problem [role=alert]").first).to_be_visible(timeout=SHOWN_MS)


def test_an_upload_is_captioned_as_every_other_door_captions_it(page: Page, served: Served) -> None:
    with Client(served.grpc) as client:
        expected = client.caption(PHOTO)
    upload(page, PHOTO)
    page.locator("#start").click()
    wait_for_the_end(page)
    assert caption_of(page) == expected.text
    assert expected.details.model in page.locator("#details").inner_text()


def test_the_text_grows_while_it_is_written(page: Page) -> None:
    upload(page, PHOTO)
    page.get_by_label("long").check()
    page.locator("#start").click()
    seen: list[str] = []
    while page.locator("#details dl").count() == 0:
        text = caption_of(page)
        if text and text not in seen:
            seen.append(text)
    assert len(seen) >= 3, seen
    assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))


def test_stop_ends_the_decoding_and_keeps_what_was_written(page: Page, served: Served) -> None:
    upload(page, PHOTO)
    page.get_by_role("button", name="Advanced").click()
    page.locator("#temperature input, #temperature textarea").first.fill("2")
    page.locator("#max_tokens input, #max_tokens textarea").first.fill("90")
    page.locator("#start").click()
    page.wait_for_function("document.querySelector('#caption textarea').value.length > 0")
    page.locator("#stop").click()
    expect(page.locator("#details")).to_contain_text("Stopped", timeout=SHOWN_MS)
    time.sleep(0.5)
    assert metric(served, "captioner_running") == 0
    kept = caption_of(page)
    time.sleep(0.5)
    assert kept and caption_of(page) == kept


def test_a_broken_file_gets_the_servers_refusal_and_the_next_photo_its_caption(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(PHOTO.read_bytes()[:3000])
    page.locator("#image input[type=file]").first.set_input_files(broken)
    page.wait_for_timeout(1500)
    page.locator("#start").click()
    expect(page.locator("#problem")).to_contain_text("IMAGE_BROKEN", timeout=SHOWN_MS)
    assert caption_of(page) == ""
    page.reload()
    expect(page.locator("#length")).to_be_visible(timeout=SHOWN_MS)
    upload(page, PHOTO)
    page.locator("#start").click()
    wait_for_the_end(page)
    assert caption_of(page)


def test_no_image_is_said_in_words(page: Page) -> None:
    page.locator("#start").click()
    expect(page.locator("#problem")).to_contain_text("IMAGE_MISSING", timeout=SHOWN_MS)


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_needs_no_sideways_scrolling(page: Page, dark: bool) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark" if dark else "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#start")).to_be_visible()
