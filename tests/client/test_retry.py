"""The client's retry policy, against real gRPC endpoints that fail on demand."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from captioner.client import AsyncClient, Client, RetryPolicy, retry
from captioner.client.probe import TINY_IMAGE as IMAGE
from captioner.client.retry import FIRST_WAIT_S, MAX_WAIT_S, Outage, Retries
from captioner.errors import (
    CaptionerError,
    CaptionsDiffer,
    DeadlineExceeded,
    ImageBroken,
    ParameterInvalid,
    RequestCancelled,
    ServerBusy,
    ServerUnreachable,
    StreamStalled,
)
from tests.support.scripted_server import PIECES, TEXT, Fault, ScriptedServer

Start = Callable[..., ScriptedServer]
PATIENT = RetryPolicy(max_elapsed_s=60)


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*faults, fault=None, port=0)`: a ScriptedServer, closed after the test."""
    servers: list[ScriptedServer] = []

    def one(*faults: Fault | None, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*faults, **options))
        return servers[-1]

    yield one
    for server in servers:
        server.close()


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first retry comes after at least 2.5 s."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", MAX_WAIT_S)


@pytest.mark.parametrize("fault", ["busy", "stopping", "unavailable", "cancelled", "stalled", "broken"])
def test_the_only_server_is_tried_again_until_it_answers(start: Start, fault: Fault) -> None:
    server = start(fault, fault)
    with Client(server.address, retry=PATIENT, stall_timeout_s=0.3) as client:
        caption = client.caption(IMAGE)
    assert (caption.text, caption.details.version) == (TEXT, "1")
    assert len(server.requests) == 3


def test_the_wait_between_attempts_doubles(start: Start) -> None:
    server = start(*["busy"] * 4)
    with Client(server.address, retry=PATIENT) as client:
        client.caption(IMAGE)
    for number, wait_s in enumerate(server.waits()):
        assert 0.5 * FIRST_WAIT_S * 2**number <= wait_s <= 1.5 * FIRST_WAIT_S * 2**number + 0.5


@pytest.mark.parametrize(
    ("fault", "error"), [("busy", ServerBusy), ("unavailable", ServerUnreachable), ("stalled", StreamStalled)]
)
def test_by_default_a_request_fails_after_one_attempt(start: Start, fault: Fault, error: type[CaptionerError]) -> None:
    server = start(fault=fault)
    with Client(server.address, stall_timeout_s=0.3) as client:
        with pytest.raises(error):
            client.caption(IMAGE)
        assert len(server.requests) == 1
        with pytest.raises(error):
            client.describe()
        assert len(server.requests) == 2


def test_by_default_each_replica_is_tried_once(start: Start) -> None:
    servers = [start(fault="busy") for _ in range(3)]
    with Client([server.address for server in servers]) as client, pytest.raises(ServerBusy):
        client.caption(IMAGE)
    assert [len(server.requests) for server in servers] == [1, 1, 1]


def test_with_several_replicas_each_attempt_tries_all_of_them(start: Start) -> None:
    servers = [start("busy", "busy"), start("busy", "busy")]
    with Client([server.address for server in servers], retry=PATIENT) as client:
        assert client.caption(IMAGE).text == TEXT
    assert sorted(len(server.requests) for server in servers) == [2, 3]


def test_retries_end_after_max_elapsed_s_and_the_last_error_is_raised(start: Start) -> None:
    server, began = start(fault="busy"), time.monotonic()
    with Client(server.address, retry=RetryPolicy(0.6)) as client, pytest.raises(ServerBusy):
        client.caption(IMAGE)
    assert 0.6 <= time.monotonic() - began < 2
    assert len(server.requests) >= 3


def test_a_deadline_ends_the_retries(start: Start) -> None:
    server, began = start(fault="busy"), time.monotonic()
    with Client(server.address, retry=PATIENT) as client, pytest.raises(DeadlineExceeded):
        client.caption(IMAGE, deadline_ms=400)
    assert 0.4 <= time.monotonic() - began < 1.5


def test_a_deadline_ends_a_wait(start: Start, long_waits: None) -> None:
    server, began = start(fault="busy"), time.monotonic()
    with Client(server.address, retry=PATIENT) as client, pytest.raises(DeadlineExceeded):
        client.caption(IMAGE, deadline_ms=200)
    assert time.monotonic() - began < 1.5
    assert len(server.requests) == 1


def test_a_cancel_ends_a_wait(start: Start, long_waits: None) -> None:
    server = start(fault="busy")
    with Client(server.address, retry=PATIENT) as client, ThreadPoolExecutor() as threads:
        stream = client.stream(IMAGE)
        read = threads.submit(next, stream)
        time.sleep(0.3)
        assert not read.done()
        began = time.monotonic()
        stream.cancel()
        with pytest.raises(RequestCancelled):
            read.result(10)
        assert time.monotonic() - began < 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("call", ["caption", "describe"])
def test_a_cancelled_task_ends_a_wait(start: Start, long_waits: None, call: str) -> None:
    server = start(fault="busy")

    async def main() -> float:
        async with AsyncClient(server.address, retry=PATIENT) as client:
            task = asyncio.ensure_future(client.caption(IMAGE) if call == "caption" else client.describe())
            await asyncio.sleep(0.3)
            assert not task.done()
            began = time.monotonic()
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.cancelled()
            return time.monotonic() - began

    assert asyncio.run(main()) < 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["busy", "stalled"])
def test_closing_the_client_ends_the_requests_of_other_threads(start: Start, long_waits: None, fault: Fault) -> None:
    """Whether they wait for a retry or for a response."""
    client = Client(start(fault=fault).address, retry=PATIENT)
    with ThreadPoolExecutor() as threads:
        request = threads.submit(client.caption, IMAGE)
        time.sleep(0.3)
        assert not request.done()
        client.close()
        with pytest.raises(RequestCancelled):
            request.result(10)


def test_a_closed_client_does_not_connect_again(start: Start) -> None:
    server = start()

    async def main() -> None:
        client = AsyncClient(server.address, retry=PATIENT)
        assert (await client.caption(IMAGE)).text == TEXT
        await client.close()
        with pytest.raises(RequestCancelled):
            await client.caption(IMAGE)

    asyncio.run(main())
    assert len(server.requests) == 1


def test_a_stream_that_breaks_continues_at_the_only_server_without_repeated_text(start: Start) -> None:
    server = start("broken", "busy", "broken")
    with Client(server.address, retry=PATIENT) as client, client.stream(IMAGE, temperature=1.5) as stream:
        assert list(stream) == list(PIECES)
    assert stream.details is not None
    assert len(server.requests) == 4
    assert len(set(server.seeds)) == 1, "a sampled caption is repeated with the same seed"


def test_a_restarted_server_that_generates_another_caption_is_not_retried(start: Start) -> None:
    server, read = start("broken"), list[str]()
    with Client(server.address, retry=PATIENT) as client, client.stream(IMAGE) as stream:
        read.append(next(stream))
        server.pieces = ("a ", "dog")
        with pytest.raises(CaptionsDiffer):
            read.extend(stream)
    assert TEXT.startswith("".join(read))
    assert len(server.requests) == 2


def test_a_server_that_restarts_in_the_middle_of_a_stream_is_waited_for(start: Start) -> None:
    # Not one of the ports that the system gives to other tests while this server is away.
    server = start(port=random.randrange(20_000, 32_000))
    server.piece_s = 0.2
    with Client(server.address, retry=PATIENT) as client, client.stream(IMAGE) as stream:
        text = next(stream)
        server.close()
        restart = threading.Timer(0.7, start, kwargs={"port": server.port})
        restart.start()
        try:
            assert text + "".join(stream) == TEXT
        finally:
            restart.join(10)


@pytest.mark.parametrize("request_name", ["caption", "describe"])
def test_a_refused_request_is_not_retried(start: Start, request_name: str) -> None:
    server = start(fault="refused")
    with Client(server.address, retry=PATIENT) as client:
        with pytest.raises(ImageBroken):
            client.caption(IMAGE) if request_name == "caption" else client.describe()
        with pytest.raises(ParameterInvalid):
            client.caption(IMAGE, max_tokens=-1)
    assert len(server.requests) == 1


def test_the_requests_of_a_client_share_the_budget_of_one_outage(start: Start) -> None:
    server, began = start(fault="busy"), time.monotonic()
    with Client(server.address, retry=RetryPolicy(0.6)) as client:
        captioned = list(client.caption_many([IMAGE] * 100, in_flight=4))
    assert time.monotonic() - began < 6, "25 rounds of 0.6 s would take 15 s"
    assert {type(each.error) for each in captioned} == {ServerBusy}
    assert 100 < len(server.requests) < 150, "once the budget is used, each request gets one attempt"


def test_an_answer_ends_the_outage(start: Start) -> None:
    server = start(fault="busy")
    with Client(server.address, retry=RetryPolicy(0.3)) as client:
        with pytest.raises(ServerBusy):
            client.caption(IMAGE)
        before = len(server.requests)
        with pytest.raises(ServerBusy):
            client.caption(IMAGE)
        assert len(server.requests) == before + 1, "the outage has no budget left"
        server.fault = None
        client.caption(IMAGE)
        server.faults = ["busy", "busy"]
        client.caption(IMAGE)
        assert len(server.requests) == before + 5


def test_new_text_gives_a_stream_the_whole_budget_again(start: Start) -> None:
    """A stream that was retried once, and then ran for longer than the budget, breaks."""
    server = start("busy", "broken")
    server.piece_s = 0.2  # 3 pieces take longer than the budget
    with Client(server.address, retry=RetryPolicy(0.4)) as client:
        assert client.caption(IMAGE, stream=True).text == TEXT
    assert len(server.requests) == 3


def test_an_image_that_always_breaks_its_stream_fails_though_others_succeed(start: Start) -> None:
    server, ended = start(), threading.Event()
    server.poison = b"poison"
    with Client(server.address, retry=RetryPolicy(0.5)) as client, ThreadPoolExecutor() as threads:

        def caption_others() -> int:
            for number in itertools.count():
                if ended.wait(0.05):
                    return number
                assert client.caption(IMAGE).text == TEXT
            raise AssertionError

        others = threads.submit(caption_others)
        try:
            began = time.monotonic()
            with pytest.raises(ServerUnreachable):
                client.caption(server.poison)
            assert time.monotonic() - began < 3
        finally:
            ended.set()
        assert others.result(10) > 3


def test_describe_is_retried(start: Start) -> None:
    server = start("busy", "unavailable")
    with Client(server.address, retry=PATIENT) as client:
        assert client.describe().model == "owner/model"
    assert len(server.requests) == 3


def test_describe_gives_up_after_max_elapsed_s(start: Start) -> None:
    server, began = start(fault="unavailable"), time.monotonic()
    with Client(server.address, retry=RetryPolicy(0.4)) as client, pytest.raises(ServerUnreachable):
        client.describe()
    assert 0.4 <= time.monotonic() - began < 2


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan])
def test_a_negative_max_elapsed_s_is_refused(seconds: float) -> None:
    with pytest.raises(ParameterInvalid, match="max_elapsed_s"):
        RetryPolicy(seconds)


def test_an_infinite_budget_never_gives_up() -> None:
    retries = Retries(Outage(RetryPolicy(math.inf)))
    waits = [retries.wait_s() for _ in range(1000)]
    assert all(wait is not None and wait <= 1.5 * MAX_WAIT_S for wait in waits)
