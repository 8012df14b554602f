"""The forwarder of the model `caption`: one answer for each request, many at a time, a bounded queue, deadlines."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from captioner.errors import CaptionerError, ImageBroken, ParameterInvalid, ServerBusy
from captioner.serving.forwarder import MAX_BYTES, MAX_FORWARDED, Forwarder
from tests.support.served import assert_soon


@dataclass
class Writer:
    """Collects what is sent to one client."""

    cancelled: bool = False
    broken: bool = False
    sent: list[Any] = field(default_factory=list)
    asked_too_late: bool = False

    def send(self, outputs: Any) -> None:
        if self.broken:
            raise OSError("the shared memory is full")
        self.sent.append(outputs)

    def fail(self, error: CaptionerError) -> None:
        self.sent.append(error.code)

    def is_cancelled(self) -> bool:
        self.asked_too_late |= bool(self.sent)
        return self.cancelled


class Captioner:
    """Answers with the parameters that it got, once `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked = 0

    def __call__(self, parameters: dict[str, object]) -> dict[str, object]:
        self.asked += 1
        assert self.release.wait(30)
        return parameters


@pytest.fixture
def captioner() -> Captioner:
    return Captioner()


@pytest.fixture
def forwarder(captioner: Captioner) -> Iterator[Forwarder]:
    counts, counting = list[int](), threading.Lock()

    def count(change: int) -> None:
        assert counting.acquire(blocking=False), "two threads count at once"
        counts.append(change)
        time.sleep(0.0005)
        counting.release()

    forwarder = Forwarder(max_waiting=2, count=count)
    yield forwarder
    captioner.release.set()
    forwarder.close()
    assert sum(counts) == 0, "a request counts until it is answered"


def fill(forwarder: Forwarder, captioner: Captioner) -> list[Writer]:
    """Occupy every thread."""
    writers = [Writer() for _ in range(MAX_FORWARDED)]
    for writer in writers:
        forwarder.handle({}, 0, captioner, writer)
    assert_soon(lambda: captioner.asked == MAX_FORWARDED)
    return writers


def test_each_request_is_answered_once_with_its_parameters_and_no_stream(
    forwarder: Forwarder, captioner: Captioner
) -> None:
    writers = [Writer(), Writer()]
    captioner.release.set()
    forwarder.handle({"length": "short"}, 0, captioner, writers[0])
    forwarder.handle({"stream": "yes"}, 0, captioner, writers[1])
    forwarder.close()
    assert writers[0].sent == [{"length": "short", "stream": False}]
    assert writers[1].sent == [{"stream": "yes"}], "the captioner refuses it, with its own sentence"


def test_many_are_forwarded_at_a_time_a_few_wait_and_the_rest_is_refused(
    forwarder: Forwarder, captioner: Captioner
) -> None:
    writers = [*fill(forwarder, captioner), Writer(), Writer()]
    for writer in writers[MAX_FORWARDED:]:
        forwarder.handle({}, 0, captioner, writer)
    with pytest.raises(ServerBusy, match="24 requests are being answered and the queue of 2 is full; retry in 1000 ms"):
        forwarder.handle({}, 0, captioner, Writer())
    assert captioner.asked == MAX_FORWARDED
    captioner.release.set()
    assert_soon(lambda: all(len(writer.sent) == 1 for writer in writers))
    forwarder.handle({}, 0, captioner, again := Writer())
    forwarder.close()
    assert again.sent == [{"stream": False}], "answered requests have left their positions"


def test_the_inputs_in_flight_have_a_limit_in_bytes(forwarder: Forwarder, captioner: Captioner) -> None:
    forwarder.handle({}, MAX_BYTES - 1, captioner, large := Writer())
    forwarder.handle({}, 1, captioner, Writer())
    with pytest.raises(ServerBusy, match="the requests in flight hold 256 MiB, the limit; retry in 1000 ms"):
        forwarder.handle({}, 1, captioner, Writer())
    captioner.release.set()
    assert_soon(lambda: len(large.sent) == 1)
    forwarder.handle({}, MAX_BYTES - 1, captioner, Writer())


def test_a_stream_is_refused_and_takes_no_position(forwarder: Forwarder, captioner: Captioner) -> None:
    for _ in range(MAX_FORWARDED + 3):
        with pytest.raises(ParameterInvalid, match="stream is True"):
            forwarder.handle({"stream": True}, 0, captioner, Writer())
    fill(forwarder, captioner)


def test_the_time_in_the_queue_counts_towards_the_deadline(forwarder: Forwarder, captioner: Captioner) -> None:
    fill(forwarder, captioner)
    forwarder.handle({"deadline_ms": 1}, 0, captioner, short := Writer())
    forwarder.handle({"deadline_ms": 60_000}, 0, captioner, long := Writer())
    assert_soon(lambda: short.sent == ["DEADLINE_EXCEEDED"])
    captioner.release.set()
    assert_soon(lambda: len(long.sent) == 1)
    assert 50_000 < long.sent[0]["deadline_ms"] < 60_000


def test_a_waiting_request_whose_client_leaves_gives_its_position_to_another(
    forwarder: Forwarder, captioner: Captioner
) -> None:
    fill(forwarder, captioner)
    left, stays, comes = Writer(), Writer(), Writer()
    forwarder.handle({}, 0, captioner, left)
    forwarder.handle({}, 0, captioner, stays)
    left.cancelled = True
    assert_soon(lambda: left.sent == ["CANCELLED"])
    forwarder.handle({}, 0, captioner, comes)
    captioner.release.set()
    assert_soon(lambda: len(stays.sent) == len(comes.sent) == 1)
    assert captioner.asked == MAX_FORWARDED + 2


def test_nothing_is_asked_about_a_request_after_its_response(forwarder: Forwarder, captioner: Captioner) -> None:
    """Triton has freed it."""
    writers = [Writer() for _ in range(MAX_FORWARDED + 2)]
    captioner.release.set()
    for _ in range(50):
        for writer in writers:
            writer.sent.clear()
        for writer in writers:
            forwarder.handle({}, 0, captioner, writer)
        assert_soon(lambda: all(len(writer.sent) == 1 for writer in writers))
    assert not any(writer.asked_too_late for writer in writers)


@pytest.mark.parametrize("deadline", [0, -5, "soon", True, None, 1.5])
def test_a_deadline_that_is_none_is_left_to_the_captioner(
    forwarder: Forwarder, captioner: Captioner, deadline: object
) -> None:
    captioner.release.set()
    forwarder.handle({"deadline_ms": deadline}, 0, captioner, writer := Writer())
    forwarder.close()
    assert writer.sent == [{"deadline_ms": deadline, "stream": False}]


def test_an_error_and_a_response_that_cannot_be_sent_are_answered_with_a_code(
    forwarder: Forwarder, captioner: Captioner
) -> None:
    def refuse(_: dict[str, object]) -> None:
        raise ImageBroken("half a file")

    captioner.release.set()
    forwarder.handle({}, 0, refuse, refused := Writer())
    forwarder.handle({}, 0, captioner, broken := Writer(broken=True))
    forwarder.close()
    assert (refused.sent, broken.sent) == (["IMAGE_BROKEN"], ["INTERNAL"])


def test_the_process_of_the_model_imports_no_torch() -> None:
    code = "import sys, captioner.serving.forwarder, captioner.wire, captioner.parent; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
