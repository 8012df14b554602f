"""The page for tests: processes of `python -m frontend`, nginx in front of them, and headless Chromium."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from captioner.examples import PHOTOS
from tests.support.processes import Process, free_port, serving
from tests.support.scripted_server import ScriptedServer
from tests.support.served import Served

PHOTO = next(path for path in PHOTOS if path.name == "cat.jpg")
BROKEN = b"RIFF\x40\x00\x00\x00WEBPVP8 " + bytes(64)  # starts like a WebP file
FLAGS = (  # without these, Chromium sends requests of its own
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The same program with a shorter polling interval, so that a test sees a new card sooner.
FAST_POLLING = """
import runpy, frontend.model_card_cache, frontend.page.messages
frontend.model_card_cache.MAX_AGE_S, frontend.page.messages.POLL_S = 0.2, 0.3
runpy.run_module("frontend", run_name="__main__")
"""
NGINX = """
{user}
daemon off;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{}}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 100m;
  upstream pages {{ {servers} }}
  log_format to '$upstream_addr $request';
  access_log {folder}/access.log to;
  server {{
    listen 127.0.0.1:{port};
    location {path}/ {{ proxy_pass http://pages/; proxy_http_version 1.1; proxy_set_header Host $http_host; }}
  }}
}}
"""

expect.set_options(timeout=30_000)  # ms; a busy machine needs more than Playwright's 5 s

Open = Callable[..., Page]
Serve = Callable[..., str]


@contextmanager
def page_process(
    scratch: Path, server: str, *options: str, fast_polling: bool = False
) -> Iterator[tuple[str, Process]]:
    """Run the page as `captioner up` does. Yields its URL and its process."""
    port = free_port()
    program = ["-c", FAST_POLLING] if fast_polling else ["-m", "frontend"]
    command = [sys.executable, *program, "--server", server, "--port", str(port), *options]
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/healthz", env=os.environ | {"TMPDIR": str(scratch)}) as process:
        yield url, process


@pytest.fixture(scope="session")
def page_url(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One page in front of the real server, for every test that only reads it."""
    with page_process(tmp_path_factory.mktemp("page"), served.grpc) as (url, _):
        yield url


@pytest.fixture(scope="module")
def processes() -> dict[str, Process]:
    """The processes that `serve_page` has started, by URL."""
    return {}


@pytest.fixture(scope="module")
def serve_page(tmp_path_factory: pytest.TempPathFactory, processes: dict[str, Process]) -> Iterator[Serve]:
    """`serve_page(server, *options)` starts a page of its own and returns its URL."""
    with ExitStack() as stack:

        def start(server: str, *options: str, fast_polling: bool = False) -> str:
            scratch = tmp_path_factory.mktemp("page")
            url, process = stack.enter_context(page_process(scratch, server, *options, fast_polling=fast_polling))
            processes[url] = process
            return url

        yield start


@pytest.fixture(scope="module")
def scripted_page_url(shared_scripted_server: ScriptedServer, serve_page: Serve) -> str:
    """One page in front of the module's scripted server."""
    return serve_page(shared_scripted_server.address)


@pytest.fixture(scope="module")
def proxy_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[str, Path]]]:
    """`proxy_pages(urls, path)` starts nginx as a round-robin proxy; returns its URL and its access log."""
    with ExitStack() as stack:

        def start(urls: list[str], path: str = "") -> tuple[str, Path]:
            folder, port = tmp_path_factory.mktemp("nginx"), free_port()
            url = f"http://127.0.0.1:{port}"
            stack.enter_context(serving(nginx_command(folder, port, urls, path), url))
            return url + path, folder / "access.log"

        yield start


def nginx_command(folder: Path, port: int, urls: list[str], path: str = "") -> list[str]:
    """Return the command of nginx as a round-robin proxy on `port`; its files are in `folder`."""
    servers = " ".join(f"server {url.removeprefix('http://')} max_fails=0;" for url in urls)
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # otherwise its workers cannot write to the folder
    config.write_text(NGINX.format(user=user, folder=folder, port=port, servers=servers, path=path))
    return ["nginx", "-c", str(config), "-p", str(folder)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Not session-scoped: while Playwright runs, other tests cannot call asyncio.run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """The context of tabs without options. Its HTTP cache makes pages open faster."""
    return browser.new_context(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def open_page(browser: Browser, context: BrowserContext) -> Iterator[Open]:
    """`open_page(url, **options)` opens a tab. The test fails if a tab asks another host or reports an error."""
    pages: list[Page] = []
    faults: list[str] = []
    cleared: set[str] = set()

    def report(text: str) -> None:
        if "Failed to load resource: the server responded with a status of" not in text:  # the page shows these itself
            faults.append(text)

    def open_page(url: str, **options: object) -> Page:
        page = browser.new_context(**options).new_page() if options else context.new_page()  # type: ignore[arg-type]
        pages.append(page)
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else faults.append(r.url))
        page.on("console", lambda message: report(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        if not options and url not in cleared:  # the choices that an earlier test has left in the shared context
            cleared.add(url)
            page.goto(f"{url}/healthz")
            page.evaluate("localStorage.clear()")
        page.goto(url)
        page.wait_for_selector("#server .server")
        page.wait_for_selector("#stop:disabled")
        return page

    yield open_page
    for page in pages:
        with suppress(Exception):
            (page if page.context is context else page.context).close()
    assert not faults


def fill_field(page: Page, name: str, text: str) -> None:
    """Fill one of the page's fields, again if Gradio redraws it and drops the text."""
    field = page.locator(f"#{name} textarea, #{name} input")
    for _ in range(20):
        field.fill(text)
        page.wait_for_timeout(50)
        if field.input_value() == text:
            return
    raise AssertionError(f"{name} does not keep {text!r}")


def choose_image(page: Page, image: Path) -> None:
    """Choose a file and wait until the page shows its name."""
    page.set_input_files("#image-file", image)
    expect(page.locator("#image-name")).to_have_text(image.name)


def caption_image(page: Page) -> str:
    """Click Caption, wait until it ends and return the caption, which is empty after an error."""
    ended = "#details .facts, #problem .problem"
    before = page.query_selector(ended)
    page.click("#start")
    if before is not None:
        before.wait_for_element_state("hidden")
    page.wait_for_selector(ended)
    expect(page.locator("#start")).to_be_enabled()
    return page.input_value("#caption textarea")
