"""POST /v1/captions, and what an orchestrator asks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import time
from typing import Any

import httpx
import pytest

from captioner.client import Client
from captioner.wire import MAX_IMAGE_BYTES, PARAMETERS
from frontend.api.captions import caption_events
from frontend.middleware import limits
from tests.support.api_client import BASE64, CAPTIONS, CHAT, DATA_URL, PHOTO, Breaking, connect, error_of, send, soon
from tests.support.api_server import api_server
from tests.support.served import Served, metric

LONG = {"length": "long", "temperature": 2, "max_tokens": 60, "repetition_guard": False}


def events(text: str) -> list[tuple[str, Any]]:
    """The (event, data) of a stream."""
    parts = [re.fullmatch(r"event: (\w+)\ndata: (.*)", part) for part in text.strip().split("\n\n")]
    return [(part[1], json.loads(part[2])) for part in parts if part is not None]


@pytest.mark.triton
def test_a_form_and_json_give_the_caption_and_details_that_the_client_gives(url: str, served: Served) -> None:
    with Client(served.grpc) as client:
        expected = client.caption(PHOTO, length="short", seed=7)
    with PHOTO.open("rb") as file:
        form = httpx.post(url + CAPTIONS, files={"image": file}, data={"length": "short", "seed": "7"})
    assert form.status_code == 200
    for image in (BASE64, DATA_URL):
        answer = httpx.post(url + CAPTIONS, json={"image": image, "length": "short", "seed": 7})
        for each in (answer.json(), form.json()):
            assert each["caption"] == expected.text
            assert each["details"]["seed"] == 7
            assert each["details"]["revision"] == expected.details.revision


@pytest.mark.triton
@pytest.mark.parametrize("way", ["form", "json", "accept"])
def test_a_stream_says_the_text_in_pieces_and_ends_with_the_details(url: str, served: Served, way: str) -> None:
    with Client(served.grpc) as client:
        expected = client.caption(PHOTO)
    if way == "form":
        answer = httpx.post(url + CAPTIONS, files={"image": PHOTO.read_bytes()}, data={"stream": "true"})
    else:
        headers = {"Accept": "text/event-stream"} if way == "accept" else {}
        body = {"image": BASE64} | ({} if way == "accept" else {"stream": True})
        answer = httpx.post(url + CAPTIONS, json=body, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    said = events(answer.text)
    assert [name for name, _ in said] == ["text"] * (len(said) - 1) + ["done"]
    assert len(said) > 3
    assert "".join(data["text"] for _, data in said[:-1]) == expected.text
    assert said[-1][1]["details"]["prompt"] == expected.details.prompt


@pytest.mark.triton
def test_each_piece_is_sent_when_it_is_written(url: str) -> None:
    heard, writing = [], []
    for _ in range(5):  # a busy machine may hear one late
        with send(url, {"image": BASE64, "stream": True} | LONG) as connection:
            text, arrived = b"", []
            while b"event: done" not in text:
                text += connection.recv(2**16)
                if b"data:" in text:
                    arrived.append(time.monotonic())
        times = json.loads(re.findall(rb"data: (.*)", text)[-1])["details"]["timings_ms"]
        heard.append(arrived[-1] - arrived[0])
        writing.append((times["total"] - times["first_token"]) / 1000)
    assert any(a > b / 2 for a, b in zip(heard, writing, strict=True)), (heard, writing)


@pytest.mark.triton
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_passes_before_the_first_text_is_a_504(url: str, stream: bool) -> None:
    unseen = base64.b64encode(PHOTO.read_bytes() + os.urandom(8)).decode()  # not among the features already known
    answer = httpx.post(url + CAPTIONS, json={"image": unseen, "deadline_ms": 1, "stream": stream})
    assert (answer.status_code, error_of(answer)["code"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.triton
@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({}, 400, "IMAGE_MISSING", "no image"),
        ({"image": ""}, 400, "IMAGE_MISSING", "no image"),
        ({"image": 5}, 400, "PARAMETER_INVALID", "image is no text"),
        ({"image": base64.b64encode(PHOTO.read_bytes()[:900]).decode()}, 400, "IMAGE_BROKEN", "JPEG"),
        ({"image": "bm8gaW1hZ2U="}, 400, "IMAGE_FORMAT_UNKNOWN", "are read"),
        ({"image": "A" * (MAX_IMAGE_BYTES * 4 // 3 + 2**19)}, 413, "IMAGE_TOO_LARGE", "20 MiB"),
        ({"image": BASE64, "temperature": 3}, 400, "PARAMETER_INVALID", "temperature is 3"),
        ({"image": BASE64, "temperature": "1"}, 400, "PARAMETER_INVALID", "temperature is '1'"),
        ({"image": BASE64, "colour": 1}, 400, "PARAMETER_UNKNOWN", "'colour'"),
        ({"image": BASE64, "describe": True}, 400, "PARAMETER_UNKNOWN", "'describe'"),
        ({"image": BASE64, "triton_x": {}}, 400, "PARAMETER_UNKNOWN", "'triton_x'"),
        ({"image": BASE64, "style": "rococo"}, 400, "PARAMETER_UNSUPPORTED", "rococo"),
        ({"image": BASE64, "prompt": ["x"]}, 400, "PARAMETER_INVALID", "prompt is no text"),
        ({"image": "https://example.org/cat.jpg"}, 400, "IMAGE_URL_REFUSED", "not fetched"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_a_status_a_code_and_a_sentence_streamed_or_not(
    url: str, body: dict[str, Any], status: int, code: str, words: str, stream: bool
) -> None:
    answer = httpx.post(url + CAPTIONS, json=body | {"stream": stream}, timeout=30)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert words in error_of(answer)["message"]


@pytest.mark.triton
@pytest.mark.parametrize(
    ("fields", "files", "words"),
    [
        ([], ["image", "image"], "'image' is there twice"),
        ([], ["image", "mask"], "'mask' is no file"),
        ([("length", "short"), ("length", "long")], ["image"], "'length' is there twice"),
        ([("temperature", "warm")], ["image"], "temperature is 'warm'; it must be a number from 0 to 2"),
        ([("temperature", "nan")], ["image"], "temperature is 'nan'"),
        ([("max_tokens", "2.5")], ["image"], "max_tokens is '2.5'"),
        ([("max_tokens", "1_0")], ["image"], "max_tokens is '1_0'"),
        ([("stream", "yes")], ["image"], "stream is 'yes'; it must be true or false"),
        ([("stop", ".")], ["image"], "stop is '.'; it must be a JSON list"),
        ([("colour", "1")], ["image"], "'colour' is no parameter"),
        ([("length", "short")], [], "no image"),
    ],
)
def test_a_forms_field_is_refused_by_name(
    url: str, fields: list[tuple[str, str]], files: list[str], words: str
) -> None:
    parts: list[Any] = [(name, (None, text)) for name, text in fields]
    parts += [(name, ("cat.jpg", PHOTO.read_bytes())) for name in files]
    answer = httpx.post(url + CAPTIONS, files=parts)
    assert answer.status_code == 400
    assert words in error_of(answer)["message"]


@pytest.mark.triton
def test_a_forms_values_reach_the_model(url: str) -> None:
    fields = {"temperature": "0.7", "top_k": "9", "seed": "11", "max_tokens": "5", "stop": '["zebra"]'}
    answer = httpx.post(url + CAPTIONS, files={"image": PHOTO.read_bytes()}, data=fields)
    details = answer.json()["details"]
    assert [details[name] for name in ("temperature", "top_k", "seed", "max_tokens")] == [0.7, 9, 11, 5]
    assert (details["finish_reason"], details["tokens"]) == ("length", 5)


@pytest.mark.triton
def test_every_example_of_the_openapi_document_is_a_valid_request(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    tried = 0
    for path, methods in document["paths"].items():
        for content in methods.get("post", {}).get("requestBody", {}).get("content", {}).values():
            names = set(content["schema"]["properties"])
            assert names >= set(PARAMETERS) - {"describe", "stream"}
            if "example" in content:
                answer = httpx.post(url + path, json=content["example"])
                assert answer.status_code == 200, answer.text
                tried += 1
    assert tried == 2


@pytest.mark.triton
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("door", ["captions", "chat"])
def test_a_client_that_leaves_ends_the_decoding_within_200_ms(
    url: str, served: Served, stream: bool, door: str
) -> None:
    image: dict[str, Any] = {"image": BASE64}
    if door == "chat":
        content = [{"type": "image_url", "image_url": {"url": DATA_URL}}]
        image = {"model": "captioner", "messages": [{"role": "user", "content": content}]}
    path = {"captions": CAPTIONS, "chat": CHAT}[door]
    took = []
    for _ in range(20):  # sixty tokens may be written before a busy machine hears of it
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


def test_a_client_that_leaves_before_its_body_is_there_is_no_fault(dead_url: str) -> None:
    connection = connect(dead_url)
    connection.sendall(b"POST /v1/captions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    time.sleep(0.1)
    connection.close()
    left = 'captioner_api_requests_total{door="captions",status="499"}'
    assert soon(lambda: left in httpx.get(f"{dead_url}/metrics").text)


def test_a_body_that_does_not_come_is_given_up(dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_S", 0.3)
    with connect(dead_url) as connection:
        connection.sendall(b"POST /v1/captions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_stream_that_breaks_ends_with_the_error_and_not_with_done() -> None:
    async def read() -> str:
        stream: Any = Breaking()
        return b"".join([each async for each in caption_events(stream, "A")]).decode()

    error = {"code": "SERVER_STOPPING", "message": "the server is stopping"}
    assert events(asyncio.run(read())) == [("text", {"text": "A"}), ("text", {"text": " cat"}), ("error", error)]


def test_a_captioner_server_that_is_away_is_said_with_when_to_ask_again(dead_url: str) -> None:
    for stream in (True, False):
        answer = httpx.post(dead_url + CAPTIONS, json={"image": BASE64, "stream": stream})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "SERVER_UNREACHABLE")
        assert int(answer.headers["retry-after"]) >= 1


def test_the_process_is_alive_while_the_captioner_server_is_away_and_not_ready(dead_url: str) -> None:
    assert httpx.get(f"{dead_url}/healthz").status_code == 200
    answer = httpx.get(f"{dead_url}/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "SERVER_UNREACHABLE"})


def test_a_captioner_server_that_says_nothing_is_not_ready_after_two_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with api_server(f"127.0.0.1:{silent.getsockname()[1]}") as url:
            began = time.monotonic()
            assert httpx.get(f"{url}/readyz", timeout=10).status_code == 503
            assert 1.5 < time.monotonic() - began < 4


@pytest.mark.triton
def test_it_is_ready_when_the_captioner_server_describes_itself(url: str, served: Served) -> None:
    with Client(served.grpc) as client:
        card = client.describe()
    expected = {"status": "ready", "model": card.model, "revision": card.revision}
    assert httpx.get(f"{url}/readyz").json() == expected


@pytest.mark.triton
def test_the_metrics_count_by_door_and_status_and_time_the_first_text(url: str) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    good, bad = (f'captioner_api_requests_total{{door="captions",status="{status}"}}' for status in (200, 400))
    timed = 'captioner_api_first_text_seconds_count{door="captions"}'
    before = value(good), value(bad), value(timed)
    httpx.post(url + CAPTIONS, json={"image": BASE64})
    httpx.post(url + CAPTIONS, json={"image": BASE64, "stream": True})
    httpx.post(url + CAPTIONS, json={})
    after = value(good), value(bad), value(timed)
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 1]
    assert value("captioner_api_in_flight") == 0
