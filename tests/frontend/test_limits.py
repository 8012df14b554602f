"""The request limits: body size and time, concurrency, cancellation when the client disconnects."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import pytest

from captioner.wire import MAX_IMAGE_BYTES
from frontend.middleware import limits
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
from tests.support.served import Served, metric


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
    monkeypatch.setattr(limits, "MAX_BODY_S", 0.3)
    with send_half(dead_url) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(("options", "status"), [(Options(api_keys=("key",)), 401), (Options(), 413)])
def test_a_client_that_first_sends_all_of_a_large_body_receives_the_error(options: Options, status: int) -> None:
    with api_server(DEAD, options) as url, send(url, {"image": "A" * 40 * 2**20}) as connection:
        assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


def test_requests_over_the_concurrency_limit_return_503_until_a_slot_is_free() -> None:
    with api_server(DEAD, Options(max_in_flight=1)) as url:
        holder = send_half(url)
        assert soon(lambda: "captioner_api_in_flight 1.0" in httpx.get(f"{url}/metrics").text)
        answer = httpx.post(url + CAPTIONS, json={"image": BASE64})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "SERVER_BUSY")
        assert answer.headers["retry-after"] == "1"
        holder.close()
        assert soon(lambda: "captioner_api_in_flight 0.0" in httpx.get(f"{url}/metrics").text)
        for _ in range(3):
            assert error_of(httpx.post(url + CAPTIONS, json={"image": BASE64}))["code"] == "SERVER_UNREACHABLE"


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
