"""The page's process under `captioner up`: a page that ends is started again, and a page that is stopped may drain."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.errors import StartupRefused
from captioner.launcher.page import Page
from tests.launcher.toys import wait_until
from tests.support.processes import free_port

# A page that answers, and takes a second to end.
PAGE = """
import http.server, signal, sys, time
def drain(*_):
    time.sleep(1)
    open("drained", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, drain)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(__import__("os").getpid()).encode())
    def log_message(self, *_): ...
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Page, list[str]]]:
    """A page that `frontend` of the working folder runs, and the lines that it logs."""
    (tmp_path / "frontend.py").write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    page = Page("127.0.0.1:9", free_port(), lines.append)
    yield page, lines
    page.stop()


def test_a_page_that_ends_by_itself_is_started_again_with_growing_waits(started: tuple[Page, list[str]]) -> None:
    page, lines = started
    never = threading.Event()
    for _ in range(3):
        page.wait_ready(never)
        os.kill(page.pid, signal.SIGKILL)
        wait_until(lambda: not page.runs)
        wait_until(lambda: restarted(page), 30)
    page.wait_ready(never)
    waits = ["again in 0 s", "again in 1 s", "again in 2 s"]
    assert all(wait in line and "exit code -9" in line for wait, line in zip(waits, lines, strict=True))


def restarted(page: Page) -> bool:
    page.restart_if_ended()
    return page.runs


def test_a_page_that_is_stopped_gets_the_time_to_drain(started: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, _ = started
    page.wait_ready(threading.Event())
    begin = time.monotonic()
    page.stop()
    assert (tmp_path / "drained").exists() and time.monotonic() - begin >= 1
    assert not page.runs


def test_a_page_that_does_not_end_is_killed_after_its_time(
    started: tuple[Page, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, _ = started
    page.wait_ready(threading.Event())
    monkeypatch.setattr("captioner.launcher.page.DRAIN_SECONDS", 0.1)
    monkeypatch.setattr("captioner.launcher.page._END_SECONDS", 0.1)
    page.stop()
    assert not page.runs


def test_a_page_that_ends_before_it_was_ready_refuses_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frontend.py").write_text("import sys; sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    page = Page("127.0.0.1:9", free_port(), print)
    with pytest.raises(StartupRefused, match="the page ended with exit code 3"):
        page.wait_ready(threading.Event())
