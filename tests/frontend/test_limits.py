"""The request limits: body size and time, concurrency, cancellation when the client disconnects."""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from captioner.wire import MAX_IMAGE_BYTES
from frontend.api.captions import NAMES
from frontend.api.chat_request import WIRE_NAMES
from frontend.client_identity import client_at, client_of, client_parameters, set_current, sign_in
from frontend.middleware import exchange, limits
from frontend.options import Options
from tests.support.api_client import (
    BASE64,
    CAPTIONS,
    CHAT,
    DATA_URL,
    LONG,
    PHOTO,
    error_of,
    send,
    send_half,
    soon,
)
from tests.support.api_server import DEAD, api_server
from tests.support.scripted_server import TEXT, ScriptedServer
from tests.support.served import Served, metric

TINY = base64.b64encode(b"\xff\xd8\xff").decode()


@pytest.fixture
def slow_server() -> Iterator[ScriptedServer]:
    """A captioner server that writes no text until its `piece_s` is set to 0."""
    server = ScriptedServer()
    server.piece_s = 60
    yield server
    server.close()


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_returns_413_while_it_is_read(dead_url: str, chunked: bool) -> None:
    part = b" " * 2**20
    content: Any = (part for _ in range(29)) if chunked else part * 29
    answer = httpx.post(dead_url + CAPTIONS, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "BODY_TOO_LARGE")


def test_an_image_of_20_mib_fits_as_base64_and_as_a_file(dead_url: str) -> None:
    data = PHOTO.read_bytes().ljust(MAX_IMAGE_BYTES, b"\0")
    as_text = httpx.post(dead_url + CAPTIONS, json={"image": base64.b64encode(data).decode()}, timeout=60)
    as_file = httpx.post(dead_url + CAPTIONS, files={"image": data}, timeout=60)
    for answer in (as_text, as_file):
        assert error_of(answer)["code"] == "SERVER_UNREACHABLE", "the request reached the client"
    too_large = httpx.post(dead_url + CAPTIONS, files={"image": data + b"\0"}, timeout=60)
    assert (too_large.status_code, error_of(too_large)["code"]) == (413, "IMAGE_TOO_LARGE")


def test_a_body_that_does_not_arrive_in_time_returns_408(dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_BODY_S", 0.3)
    with send_half(dead_url) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(("options", "status"), [(Options(api_keys=("key",)), 401), (Options(), 413)])
def test_a_client_that_first_sends_all_of_a_large_body_receives_the_error(options: Options, status: int) -> None:
    with api_server(DEAD, options) as url, send(url, {"image": "A" * 40 * 2**20}) as connection:
        assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


def test_requests_over_the_concurrency_limit_return_503_until_a_place_is_free(slow_server: ScriptedServer) -> None:
    with api_server(slow_server.address, Options(max_in_flight=1)) as url:
        holder = send(url, {"image": BASE64})
        assert soon(lambda: "captioner_api_in_flight 1.0" in httpx.get(f"{url}/metrics").text)
        soon(lambda: bool(slow_server.requests))
        refusals = [httpx.post(url + CAPTIONS, json={"image": BASE64}) for _ in range(20)]
        for answer in refusals:
            assert (answer.status_code, error_of(answer)["code"]) == (503, "SERVER_BUSY")
            seconds, ms = int(answer.headers["retry-after"]), int(answer.headers["retry-after-ms"])
            assert 100 <= ms <= 1000 * seconds <= 30_000
        assert len({answer.headers["retry-after-ms"] for answer in refusals}) > 5, "clients must not return together"
        assert 'captioner_api_refused_total{code="SERVER_BUSY"} 20.0' in httpx.get(f"{url}/metrics").text
        holder.close()
        assert soon(lambda: "captioner_api_in_flight 0.0" in httpx.get(f"{url}/metrics").text)
        slow_server.piece_s = 0
        assert httpx.post(url + CAPTIONS, json={"image": BASE64}).json()["caption"] == TEXT


def test_a_refusal_takes_less_than_20_ms(slow_server: ScriptedServer) -> None:
    with api_server(slow_server.address, Options(max_in_flight=1)) as url, send(url, {"image": BASE64}):
        assert soon(lambda: bool(slow_server.requests))
        took = []
        with httpx.Client() as client:
            for _ in range(50):
                began = time.perf_counter()
                assert client.post(url + CAPTIONS, json={"image": BASE64}).status_code == 503
                took.append(time.perf_counter() - began)
        assert statistics.median(took) < 0.02


def test_one_client_with_500_requests_does_not_lock_out_another(slow_server: ScriptedServer) -> None:
    options = Options(max_in_flight=8, api_keys=("crowd", "single"))
    headers = {"Authorization": "Bearer crowd"}
    with api_server(slow_server.address, options) as url, ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(send(url, {"image": TINY}, headers=headers))
        assert soon(lambda: len(slow_server.requests) == 8)
        crowd = httpx.post(url + CAPTIONS, json={"image": TINY}, headers=headers)
        assert error_of(crowd)["code"] == "SERVER_BUSY"
        slow_server.piece_s = 0
        single = httpx.post(url + CAPTIONS, json={"image": TINY}, headers={"Authorization": "Bearer single"})
        assert single.json()["caption"] == TEXT


def test_bodies_that_arrive_slowly_hold_no_places(slow_server: ScriptedServer) -> None:
    slow_server.piece_s = 0
    with api_server(slow_server.address, Options(max_in_flight=2)) as url, ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(send_half(url))
        assert soon(lambda: "captioner_api_in_flight 7.0" in httpx.get(f"{url}/metrics").text)
        for _ in range(3):
            assert httpx.post(url + CAPTIONS, json={"image": TINY}).json()["caption"] == TEXT
        stack.enter_context(send_half(url))
        assert soon(lambda: "captioner_api_in_flight 8.0" in httpx.get(f"{url}/metrics").text)
        answer = httpx.post(url + CAPTIONS, json={"image": TINY})
        assert "8 request bodies are arriving" in error_of(answer)["message"], "slow bodies have a limit of their own"


def test_the_bodies_of_all_requests_together_are_bounded(
    slow_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 2**20)
    with api_server(slow_server.address) as url, send(url, {"image": "A" * (2**19 + 2**18)}) as first:
        assert soon(lambda: "captioner_api_in_flight 1.0" in httpx.get(f"{url}/metrics").text)
        with send(url, {"image": "A" * 2**19}) as second:
            assert second.recv(100).startswith(b"HTTP/1.1 503 ")
        first.close()
        slow_server.piece_s = 0
        assert soon(lambda: httpx.post(url + CAPTIONS, json={"image": "A" * 2**19}).status_code == 200)


def test_a_client_is_its_key_or_else_its_network() -> None:
    signed_in: dict[str, Any] = {"client": ("192.0.2.1", 1)}
    elsewhere: dict[str, Any] = {"client": ("192.0.2.2", 1)}
    assert client_of(signed_in) != client_of(elsewhere)
    for scope in (signed_in, elsewhere):
        sign_in(scope, b"a-secret-key")
    assert client_of(signed_in) == client_of(elsewhere)
    assert "secret" not in client_of(signed_in)
    assert len(client_of(signed_in)) <= 64
    assert client_at("2001:db8::1") == client_at("2001:db8::ffff") != client_at("2001:db8:0:1::1")


def test_the_captioner_server_learns_the_client() -> None:
    assert client_parameters() == {}
    set_current("somebody")
    assert client_parameters() == {"client_id": "somebody"}


def test_a_user_cannot_set_the_client() -> None:
    assert "client_id" not in {*NAMES, *WIRE_NAMES}


def test_a_client_that_disconnects_before_its_body_is_sent_is_counted_as_499(dead_url: str) -> None:
    connection = send_half(dead_url)
    time.sleep(0.1)
    connection.close()
    cancelled = 'captioner_api_requests_total{endpoint="captions",status="499"}'
    assert soon(lambda: cancelled in httpx.get(f"{dead_url}/metrics").text)


@pytest.mark.triton
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("endpoint", ["captions", "chat"])
def test_a_client_that_disconnects_cancels_the_decoding_within_200_ms(
    url: str, served: Served, stream: bool, endpoint: str
) -> None:
    image: dict[str, Any] = {"image": BASE64}
    if endpoint == "chat":
        content = [{"type": "image_url", "image_url": {"url": DATA_URL}}]
        image = {"model": "captioner", "messages": [{"role": "user", "content": content}]}
    path = {"captions": CAPTIONS, "chat": CHAT}[endpoint]
    took = []
    for _ in range(20):  # a busy machine may generate all 60 tokens before it sees the disconnect
        before = metric(served, "captioner_cancelled_total")
        connection = send(url, image | LONG | {"stream": stream}, path)
        if stream:
            while b"data:" not in connection.recv(2**16):
                pass
        else:
            soon(lambda: metric(served, "captioner_running") > 0, 1)
        left = time.monotonic()
        connection.close()
        if soon(lambda: metric(served, "captioner_cancelled_total") > before, 0.4):  # noqa: B023
            took.append(time.monotonic() - left)
        if took and min(took) < 0.2:
            break
    assert took, "no decoding was cancelled"
    assert min(took) < 0.2, took
    assert soon(lambda: metric(served, "captioner_running") == 0)
