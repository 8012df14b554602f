"""POST /v1/captions: forms and JSON, streams, errors."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
from typing import Any

import httpx
import pytest

from captioner.client import Client
from captioner.wire import MAX_IMAGE_BYTES
from frontend.api.captions import caption_error, caption_events
from frontend.api.responses import Events
from tests.support.api_client import BASE64, CAPTIONS, DATA_URL, LONG, PHOTO, BreakingStream, body_of, error_of, send
from tests.support.served import Served


def events(text: str) -> list[tuple[str, Any]]:
    """Return the (event, data) pairs of a stream."""
    parts = [re.fullmatch(r"event: (\w+)\ndata: (.*)", part) for part in text.strip().split("\n\n")]
    return [(part[1], json.loads(part[2])) for part in parts if part is not None]


@pytest.mark.triton
def test_a_form_and_json_return_the_same_caption_as_the_client(url: str, served: Served) -> None:
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
@pytest.mark.parametrize("request_by", ["form", "json", "accept"])
def test_a_stream_sends_the_text_in_pieces_and_ends_with_the_details(url: str, served: Served, request_by: str) -> None:
    with Client(served.grpc) as client:
        expected = client.caption(PHOTO, length="long")  # a short caption may leave in two pieces
    if request_by == "form":
        fields = {"stream": "true", "length": "long"}
        answer = httpx.post(url + CAPTIONS, files={"image": PHOTO.read_bytes()}, data=fields)
    else:
        headers = {"Accept": "text/event-stream"} if request_by == "accept" else {}
        body = {"image": BASE64, "length": "long"} | ({} if request_by == "accept" else {"stream": True})
        answer = httpx.post(url + CAPTIONS, json=body, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    received = events(answer.text)
    assert [name for name, _ in received] == ["text"] * (len(received) - 1) + ["done"]
    assert len(received) > 3
    assert "".join(data["text"] for _, data in received[:-1]) == expected.text
    assert received[-1][1]["details"]["prompt"] == expected.details.prompt


@pytest.mark.triton
def test_each_piece_is_sent_while_the_caption_is_generated(url: str) -> None:
    for _ in range(5):  # on a busy machine, the client may read late
        with send(url, {"image": BASE64, "stream": True} | LONG) as connection:
            text, arrived = b"", []
            while b"event: done" not in text:
                text += connection.recv(2**16)
                if b"data:" in text:
                    arrived.append(time.monotonic())
        times = json.loads(re.findall(rb"data: (.*)", text)[-1])["details"]["timings_ms"]
        receiving_s = arrived[-1] - arrived[0]
        generating_s = (times["total"] - times["first_token"]) / 1000
        if receiving_s > generating_s / 2:
            return
    pytest.fail(f"received within {receiving_s:.3f} s, generated within {generating_s:.3f} s")


@pytest.mark.triton
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_passes_before_the_first_text_returns_504(url: str, stream: bool) -> None:
    unseen = base64.b64encode(PHOTO.read_bytes() + os.urandom(8)).decode()  # not in the feature cache
    answer = httpx.post(url + CAPTIONS, json={"image": unseen, "deadline_ms": 1, "stream": stream})
    assert (answer.status_code, error_of(answer)["code"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.triton
@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({}, 400, "IMAGE_MISSING", "no image"),
        ({"image": ""}, 400, "IMAGE_MISSING", "no image"),
        ({"image": 5}, 400, "PARAMETER_INVALID", "image is not text"),
        ({"image": base64.b64encode(PHOTO.read_bytes()[:900]).decode()}, 400, "IMAGE_BROKEN", "JPEG"),
        ({"image": "bm8gaW1hZ2U="}, 400, "IMAGE_FORMAT_UNKNOWN", "supported formats"),
        ({"image": "A" * (MAX_IMAGE_BYTES * 4 // 3 + 2**19)}, 413, "IMAGE_TOO_LARGE", "20 MiB"),
        ({"image": BASE64, "temperature": 3}, 400, "PARAMETER_INVALID", "temperature is 3"),
        ({"image": BASE64, "temperature": "1"}, 400, "PARAMETER_INVALID", "temperature is '1'"),
        ({"image": BASE64, "color": 1}, 400, "PARAMETER_UNKNOWN", "'color'"),
        ({"image": BASE64, "describe": True}, 400, "PARAMETER_UNKNOWN", "'describe'"),
        ({"image": BASE64, "triton_x": {}}, 400, "PARAMETER_UNKNOWN", "'triton_x'"),
        ({"image": BASE64, "style": "rococo"}, 400, "PARAMETER_UNSUPPORTED", "rococo"),
        ({"image": BASE64, "prompt": ["x"]}, 400, "PARAMETER_INVALID", "prompt is not text"),
        ({"image": "https://example.org/cat.jpg"}, 400, "IMAGE_URL_REFUSED", "not allowed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_a_status_a_code_and_a_message_streamed_or_not(
    url: str, body: dict[str, Any], status: int, code: str, message: str, stream: bool
) -> None:
    answer = httpx.post(url + CAPTIONS, json=body | {"stream": stream}, timeout=30)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert message in error_of(answer)["message"]


@pytest.mark.triton
@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        ([], ["image", "image"], "'image' is given twice"),
        ([], ["image", "mask"], "'mask' is not a known file field"),
        ([("length", "short"), ("length", "long")], ["image"], "'length' is given twice"),
        ([("temperature", "warm")], ["image"], "temperature is 'warm'; it must be a number from 0 to 2"),
        ([("temperature", "nan")], ["image"], "temperature is 'nan'"),
        ([("max_tokens", "2.5")], ["image"], "max_tokens is '2.5'"),
        ([("max_tokens", "1_0")], ["image"], "max_tokens is '1_0'"),
        ([("stream", "yes")], ["image"], "stream is 'yes'; it must be true or false"),
        ([("stop", "[1]")], ["image"], "stop is '[1]'; it must be a JSON list"),
        ([("color", "1")], ["image"], "'color' is not a parameter"),
        ([("length", "short")], [], "no image"),
    ],
)
def test_an_error_about_a_form_names_the_field(
    url: str, fields: list[tuple[str, str]], files: list[str], message: str
) -> None:
    parts: list[Any] = [(name, (None, text)) for name, text in fields]
    parts += [(name, ("cat.jpg", PHOTO.read_bytes())) for name in files]
    answer = httpx.post(url + CAPTIONS, files=parts)
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


@pytest.mark.triton
def test_the_values_of_a_form_reach_the_model(url: str) -> None:
    fields = {"temperature": "0.7", "top_k": "9", "seed": "11", "max_tokens": "5", "stop": '["zebra"]'}
    answer = httpx.post(url + CAPTIONS, files={"image": PHOTO.read_bytes()}, data=fields)
    details = answer.json()["details"]
    assert [details[name] for name in ("temperature", "top_k", "seed", "max_tokens")] == [0.7, 9, 11, 5]
    assert (details["finish_reason"], details["tokens"]) == ("length", 5)


def test_a_stream_that_breaks_ends_with_an_error_instead_of_done() -> None:
    async def read() -> str:
        stream: Any = BreakingStream()
        return await body_of(Events(stream, caption_events(stream, "A"), caption_error))

    error = {"code": "SERVER_STOPPING", "message": "the server is stopping"}
    assert events(asyncio.run(read())) == [("text", {"text": "A"}), ("text", {"text": " cat"}), ("error", error)]
