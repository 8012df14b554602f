"""The largest bodies, of every kind: a bystander's caption beside them takes less than twice its usual time."""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from captioner.wire import MAX_IMAGE_BYTES
from frontend.api.chat_request import chat_request
from frontend.api.request_body import MAX_COMMAS, parse_json
from frontend.http_errors import BodyRefused, BodyTooLarge
from tests.frontend.test_chat_request import IMAGE as IMAGE_URL
from tests.frontend.test_chat_request import text, user
from tests.support.api_client import BASE64, CAPTIONS, connect, error_of
from tests.support.cards import CARD
from tests.support.pages import page_process
from tests.support.scripted_server import ScriptedServer

IMAGE = b"\xff\xd8\xff" + bytes(range(256)) * (MAX_IMAGE_BYTES // 256 - 1)
FORM = "multipart/form-data; boundary=b"


def form(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


BODIES = {
    "an image": (b'{"image":"%b"}' % base64.b64encode(IMAGE), "application/json"),
    "numbers": (b'{"image":[%b0]}' % (b"0," * (13 * 2**20)), "application/json"),
    "escapes": (b'{"image":"%b"}' % (b"\\n" * (13 * 2**20)), "application/json"),
    "a file": (form(IMAGE), FORM),
    "almost boundaries": (form(b"\r\n-" * (MAX_IMAGE_BYTES // 3)), FORM),
}


@pytest.fixture(scope="module")
def page_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server = ScriptedServer()
    server.piece_s = 0.05
    with page_process(tmp_path_factory.mktemp("page"), server.address) as (url, _):
        yield int(url.rpartition(":")[2])
    server.close()


def median_s(port: int, captions: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took = []
    for _ in range(captions):
        began = time.perf_counter()
        connection.request("POST", CAPTIONS, json.dumps({"image": BASE64}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        took.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(took)


@pytest.mark.parametrize("name", BODIES)
def test_a_caption_beside_the_largest_body_takes_less_than_twice_its_time(page_port: int, name: str) -> None:
    body, media_type = BODIES[name]
    head = f"POST {CAPTIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {media_type}\r\n"
    usual = median_s(page_port, 5)
    stopping, sent = threading.Event(), 0

    def send_bodies() -> None:
        nonlocal sent
        while not stopping.is_set():
            with connect(f"http://127.0.0.1:{page_port}") as connection, suppress(OSError):
                connection.settimeout(60)
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                sent += connection.recv(12).startswith(b"HTTP/1.1 ")

    sender = threading.Thread(target=send_bodies)
    sender.start()
    try:
        beside = median_s(page_port, 9)
    finally:
        stopping.set()
        sender.join()
    assert sent > 0
    assert beside < 2 * usual, f"{beside:.3f} s, alone {usual:.3f} s"


def test_the_values_of_a_json_body_are_bounded_before_it_is_parsed() -> None:
    assert len(parse_json(b'{"a": [%b0]}' % (b"0," * MAX_COMMAS))["a"]) == MAX_COMMAS + 1
    with pytest.raises(BodyRefused, match="commas"):
        parse_json(b'{"a": [%b0]}' % (b"0," * (MAX_COMMAS + 1)))


def test_a_repeated_name_behind_many_others_is_found_at_once() -> None:
    body = b"{%b}" % b",".join(b'"%d":0' % (number % MAX_COMMAS) for number in range(MAX_COMMAS + 1))
    began = time.perf_counter()
    with pytest.raises(BodyRefused, match="'0' is given twice"):
        parse_json(body)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("prompt", "a" * 32_769, "PROMPT_TOO_LONG"),
        ("style", "a" * 65, "PARAMETER_INVALID"),
        ("stop", ["a" * 16_385], "PARAMETER_INVALID"),
        ("extras", ["a" * 4_000, "a" * 4_000], "PARAMETER_INVALID"),
    ],
)
def test_a_text_beside_an_image_is_refused_before_the_server_is_asked(
    dead_url: str, name: str, value: object, code: str
) -> None:
    answer = httpx.post(dead_url + CAPTIONS, json={"image": BASE64, name: value}, timeout=30)
    assert (answer.status_code, error_of(answer)["code"]) == (400, code)


def test_the_text_of_a_chat_is_bounded() -> None:
    turns = [user(text("a" * 2**19)), user(text("a" * 2**19), text("a"), IMAGE_URL)]
    with pytest.raises(BodyTooLarge, match="1048577 characters of text; the limit is 1048576"):
        chat_request({"model": CARD.model, "messages": turns}, CARD)
