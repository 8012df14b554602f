"""The health check of `captioner up`: overload is not death."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from captioner.client import probe as probing
from captioner.client.probe import HealthCheck, work_done
from captioner.errors import CaptionerError, ServerBusy, StreamStalled
from captioner.launcher.health import Health
from tests.launcher.toys import wait_until

BUSY = ServerBusy("16 slots and 64 waiting positions are taken")


class Metrics:
    """A metrics endpoint whose text a test changes."""

    def __init__(self) -> None:
        self.text = ""
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(metrics.text.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def show(self, tokens: int, images: int | None = None, version: int = 1) -> None:
        self.text = f'nv_inference_count 9\ncaptioner_tokens_total{{version="{version}"}} {tokens}\n'
        if images is not None:
            self.text += f'captioner_images_encoded_total{{version="{version}"}} {images}\n'


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.server.shutdown()
    metrics.server.server_close()


def failing(monkeypatch: pytest.MonkeyPatch, error: CaptionerError | None) -> None:
    def probe(address: str, timeout_s: float) -> str:
        if error is not None:
            raise error
        return "a cat"

    monkeypatch.setattr(probing, "probe", probe)


@pytest.mark.parametrize("error", [BUSY, StreamStalled("nothing for 20 s")], ids=["busy", "stalled"])
def test_a_server_that_counts_tokens_or_images_is_alive_though_probes_fail(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics, error: CaptionerError
) -> None:
    failing(monkeypatch, error)
    lines: list[str] = []
    check = HealthCheck("127.0.0.1:9", metrics.address, 1, lines.append)
    metrics.show(tokens=5, images=2)
    assert check() == error.wire()  # nothing has moved since the probe began
    metrics.show(tokens=6, images=2)
    assert check() is None
    metrics.show(tokens=6, images=3)
    assert check() is None
    assert check() == error.wire()
    assert [("makes progress" in line, error.wire() in line) for line in lines] == [
        (False, True), (True, True), (True, True), (False, True)
    ]  # fmt: skip


def test_a_caption_proves_that_the_server_works_and_nothing_is_logged(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> None:
    failing(monkeypatch, None)
    lines: list[str] = []
    assert HealthCheck("127.0.0.1:9", metrics.address, 1, lines.append)() is None
    assert lines == []


def test_a_server_without_readable_metrics_counts_as_one_without_progress(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> None:
    failing(monkeypatch, BUSY)
    check = HealthCheck("127.0.0.1:9", metrics.address, 1, lambda _: None)
    metrics.show(tokens=5)
    assert check() == BUSY.wire()
    metrics.text = "other 7\n"
    assert check() == BUSY.wire()
    assert work_done("127.0.0.1:9") is None


def test_the_work_of_all_versions_is_counted(metrics: Metrics) -> None:
    metrics.text = 'captioner_tokens_total{version="1"} 5\ncaptioner_tokens_total{version="2"} 1e+06\n'
    assert work_done(metrics.address) == 1_000_005


def test_two_failed_probes_in_a_row_are_a_fault_and_one_is_not() -> None:
    answers = iter(["busy", None, "stalled", "stalled"])
    health = Health(lambda: next(answers), 0.01)
    wait_until(lambda: health.fault is not None)
    assert health.fault == "the probe failed 2 times in a row: stalled"
    assert next(answers, "none left") == "none left"


def test_a_probe_whose_server_was_replaced_finds_no_fault() -> None:
    calls: list[int] = []

    def probe() -> str:
        calls.append(1)
        return "stalled"

    health = Health(probe, 0.05)
    health.stop()
    assert health.fault is None and not calls
