"""Pages as people reach them: processes of `python -m frontend`, nginx in front of them, Chromium, and what is sent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from captioner.examples import PHOTOS
from tests.support.served import Served

PHOTO = next(path for path in PHOTOS if path.name == "cat.jpg")
BROKEN = b"RIFF\x40\x00\x00\x00WEBPVP8 " + bytes(64)  # begins as a WebP file does
QUIET = (  # without these Chromium looks for hosts of its own
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
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

Open = Callable[..., Page]
Serve = Callable[..., str]


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns once somebody answers there."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, "it ended"
            time.sleep(0.1)
    raise AssertionError("nobody answered within a minute")


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """What was started, by its address; all of it is ended."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    yield started
    for process in started.values():
        process.terminate()
    for process in started.values():
        process.wait(20)


@pytest.fixture(scope="module")
def serve_page(tmp_path_factory: pytest.TempPathFactory, processes: dict[str, subprocess.Popen[bytes]]) -> Serve:
    """`serve_page(server, *options)`: the address of a page for that server, run as `captioner up` runs it."""

    def start(server: str, *options: str) -> str:
        port = free_port()
        command = [sys.executable, "-m", "frontend", "--server", server, "--port", str(port), *options]
        process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("page"))})
        url = f"http://127.0.0.1:{port}"
        processes[url] = process
        wait_for(f"{url}/healthz", process)
        return url

    return start


@pytest.fixture(scope="module")
def page_url(served: Served, serve_page: Serve) -> str:
    """The page in front of the real server."""
    return serve_page(served.grpc)


@pytest.fixture(scope="module")
def proxy_pages(
    tmp_path_factory: pytest.TempPathFactory, processes: dict[str, subprocess.Popen[bytes]]
) -> Callable[..., tuple[str, Path]]:
    """`proxy_pages(urls, path)`: nginx before them, each request to the next in turn; its address and its log."""

    def start(urls: list[str], path: str = "") -> tuple[str, Path]:
        folder, port = tmp_path_factory.mktemp("nginx"), free_port()
        servers = " ".join(f"server {url.removeprefix('http://')} max_fails=0;" for url in urls)
        config = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # its workers are to write where we may
        config.write_text(NGINX.format(user=user, folder=folder, port=port, servers=servers, path=path))
        process = subprocess.Popen(["nginx", "-c", str(config), "-p", str(folder)])
        url = f"http://127.0.0.1:{port}"
        processes[url] = process
        wait_for(url, process)
        return url + path, folder / "access.log"

    return start


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """`open_page(url, **context)`: a tab of its own. No tab may ask another host or report an error of its own."""
    pages, faults = [], []

    def report(text: str) -> None:
        if "Failed to load resource: the server responded with a status of" not in text:  # what the page is told of
            faults.append(text)

    def open_page(url: str, **context: object) -> Page:
        page = browser.new_context(**context).new_page()  # type: ignore[arg-type]
        pages.append(page)
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else faults.append(r.url))
        page.on("console", lambda message: report(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#server .server")
        page.wait_for_selector("#stop:disabled")
        return page

    yield open_page
    for page in pages:
        with suppress(Exception):
            page.context.close()
    assert not faults


def fill_field(page: Page, name: str, text: str) -> None:
    """Writes into one of the page's fields as somebody does who sees it: one that is being drawn is emptied."""
    field = page.locator(f"#{name} textarea, #{name} input")
    for _ in range(20):
        field.fill(text)
        page.wait_for_timeout(100)
        if field.input_value() == text:
            return
    raise AssertionError(f"{name} does not keep {text!r}")
