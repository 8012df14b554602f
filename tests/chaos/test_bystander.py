"""Each field at its limit, and far beyond it, at every endpoint: refused at once, and a bystander does not notice."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from captioner.client import Client
from captioner.launcher.supervisor import TritonServer
from tests.support.field_limits import (
    BODY,
    PHOTO,
    Field,
    Send,
    by_api,
    by_generate,
    by_grpc,
    fields,
    texts_without_limit,
)
from tests.support.pages import page_process

pytestmark = [pytest.mark.triton, pytest.mark.alone]

ENDPOINTS = ("grpc", "generate", "json", "form", "chat")
REFUSAL_S = 0.1
SLOWER = 2.0
ATTEMPTS = 3  # the best counts: other programs run on this machine too
COPIES_S_PER_MB = 0.015  # Triton parses a request of 28 MB and copies it several times before the model sees it
USUAL = 10  # captions beside nothing
IDLE_S = 0.06  # one of them on two idle cores
UNTYPED = ("INTERNAL", "SERVER_UNREACHABLE", "SERVER_STOPPING", "STREAM_STALLED")


class Bystander:
    """Captions new pictures in a loop, in a thread of its own."""

    def __init__(self, address: str) -> None:
        self.errors: list[Exception] = []
        self._seconds: list[float] = []
        self._client = Client(address)
        self._rng = Random(0)
        self._begins, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def watch(self) -> list[float]:
        """Wait until a caption begins; return the list that gets its seconds and those of the next ones."""
        seconds: list[float] = []
        self._seconds = seconds
        self._begins.clear()
        self._begins.wait()
        return seconds

    def wait(self, seconds: list[float], captions: int = 1) -> None:
        """Wait until so many of the watched captions are complete."""
        while len(seconds) < captions:
            time.sleep(0.005)

    def usual(self) -> float:
        """Return the median time of a caption beside nothing, in seconds."""
        seconds = self.watch()
        self.wait(seconds, USUAL)
        return statistics.median(seconds)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            seconds, began = self._seconds, time.perf_counter()
            self._begins.set()
            try:
                self._client.caption(PHOTO + self._rng.randbytes(8), max_tokens=4)
            except Exception as error:
                self.errors.append(error)
                time.sleep(0.1)
            seconds.append(time.perf_counter() - began)


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of its own: one that a request ended must not fail other tests."""
    log_path = tmp_path_factory.mktemp("bystander") / "server.log"
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=log_path) as server:
        yield server


@pytest.fixture(scope="module")
def senders(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Send]]:
    with ExitStack() as stack:
        url, _ = stack.enter_context(page_process(tmp_path_factory.mktemp("page"), server.grpc_address))
        page = url.removeprefix("http://")
        yield {
            "grpc": stack.enter_context(by_grpc(server.grpc_address)),
            "generate": by_generate(server.http_address),
            "json": by_api(page, "json"),
            "form": by_api(page, "form"),
            "chat": by_api(page, "chat"),
        }


@pytest.fixture
def bystander(server: TritonServer) -> Iterator[Bystander]:
    bystander = Bystander(server.grpc_address)
    yield bystander
    bystander.stop()


def test_every_text_of_the_wire_has_a_limit() -> None:
    assert texts_without_limit() == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_field_at_or_beyond_its_limit_is_answered_at_once_and_a_bystander_does_not_notice(
    senders: dict[str, Send], bystander: Bystander, endpoint: str
) -> None:
    usual, faults = bystander.usual(), []
    for field in fields():
        if (endpoint, field.name) == ("grpc", BODY):  # gRPC has no text to parse
            continue
        if (endpoint, field.name) == ("chat", "max_tokens"):  # a limit above the model's own changes nothing
            continue
        attempts = (
            faults_of(senders[endpoint], field, bystander, bystander.usual() if attempt else usual)
            for attempt in range(ATTEMPTS)
        )
        faults += fewest(attempts)
    assert not faults, "\n".join(faults)
    assert bystander.errors == []


def faults_of(send: Send, field: Field, bystander: Bystander, usual: float) -> list[str]:
    """Send each value of a field beside a caption of the bystander; return what is wrong."""
    faults: list[str] = []
    beside: list[float] = []
    for index, value in enumerate((*field.at_limit, *field.beyond)):
        seconds = bystander.watch()
        reply = send(field.name, value)
        is_beyond = index >= len(field.at_limit)
        what = f"{field.name} {'beyond its limit' if is_beyond else 'at its limit'}, value {index}"
        if reply.code in UNTYPED or (is_beyond and not reply.code):
            faults.append(f"{what}: {reply.code or 'accepted'} {reply.message[:200]}")
        elif is_beyond and reply.seconds > refusal_limit_s(value, usual):
            faults.append(f"{what}: refused after {reply.seconds * 1000:.0f} ms")
        bystander.wait(seconds)
        beside += seconds
    slower = statistics.median(beside) / usual
    return [*faults, f"beside {field.name}, captions take {slower:.1f} times as long"] if slower > SLOWER else faults


def refusal_limit_s(value: Any, usual: float) -> float:
    """Return the limit on two idle cores, or more if this machine is slower now."""
    size = len(value) if isinstance(value, str | bytes) else len(json.dumps(value))
    return (REFUSAL_S + size / 1e6 * COPIES_S_PER_MB) * max(1.0, usual / IDLE_S)


def fewest(attempts: Iterator[list[str]]) -> list[str]:
    """Return the shortest list; stop at the first empty one."""
    best = next(attempts)
    for faults in attempts if best else ():
        best = min(best, faults, key=len)
        if not best:
            break
    return best
