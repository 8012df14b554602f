"""POST /v1/captions and everything around the doors: bodies, limits, access, what an orchestrator asks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from captioner.client import Client
from captioner.errors import AccessDenied, CaptionerError, ServerStopping, StartupRefused
from captioner.wire import MAX_IMAGE_BYTES, PARAMETERS
from frontend import limits
from frontend.body import parse_json
from frontend.captions import caption_events
from frontend.options import Options
from frontend.refusals import STATUSES, BodyRefused, refusal, status_of
from tests.api_server import DEAD, PAGE, api_server
from tests.served import ROOT, Served, metric

PHOTO = ROOT / "captioner/examples/cat.jpg"
BASE64 = base64.b64encode(PHOTO.read_bytes()).decode()
DATA_URL = f"data:image/jpeg;base64,{BASE64}"
LONG = {"length": "long", "temperature": 2, "max_tokens": 60, "repetition_guard": False}
CAPTIONS = "/v1/captions"


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    with api_server(served.grpc) as url:
        yield url


@pytest.fixture(scope="module")
def dead_url() -> Iterator[str]:
    """An API whose captioner server is not up."""
    with api_server(DEAD) as url:
        yield url


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def events(text: str) -> list[tuple[str, Any]]:
    """The (event, data) of a stream."""
    parts = [re.fullmatch(r"event: (\w+)\ndata: (.*)", part) for part in text.strip().split("\n\n")]
    return [(part[1], json.loads(part[2])) for part in parts if part is not None]


def soon(claim: Callable[[], bool], within_s: float = 5.0) -> bool:
    latest = time.monotonic() + within_s
    while not (held := claim()) and time.monotonic() < latest:
        time.sleep(0.01)
    return held


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


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def send(url: str, body: dict[str, Any], path: str = CAPTIONS) -> socket.socket:
    """A request whose answer is not read."""
    data = json.dumps(body).encode()
    connection = connect(url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


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
    path = {"captions": CAPTIONS, "chat": "/v1/chat/completions"}[door]
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


class Breaking:
    """A stream that breaks after its second piece, as one does whose server is stopped."""

    details = None

    def __init__(self) -> None:
        self.pieces = [" cat"]

    def __aiter__(self) -> Breaking:
        return self

    async def __anext__(self) -> str:
        if not self.pieces:
            raise ServerStopping("the server is stopping")
        return self.pieces.pop()


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


# Bodies


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"[]", "must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"temperature": NaN}', "NaN is no number"),
        (b'{"temperature": -Infinity}', "-Infinity is no number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
        (b'{"prompt": "\\ud83d"}', "half of a character"),
        (b'{"\\uDC00": 1}', "half of a character"),
        (b'{"prompt": "\xff"}', "no UTF-8 text: byte 12 is 0xff"),
        ('{"image": "x"}'.encode("utf-16"), "no UTF-8"),
    ],
)
@pytest.mark.parametrize("path", [CAPTIONS, "/v1/chat/completions"])
def test_a_body_that_is_not_plain_json_is_refused_in_words(dead_url: str, path: str, body: bytes, words: str) -> None:
    answer = httpx.post(dead_url + path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "BODY_REFUSED")
    assert words in error_of(answer)["message"]


def test_a_whole_character_in_two_escapes_is_read() -> None:
    assert parse_json(b'{"prompt": "\\ud83d\\ude00"}') == {"prompt": "😀"}


@given(st.binary() | st.text().map(str.encode))
@example(b'{"a": 1e999}')
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    with suppress(BodyRefused):
        assert isinstance(parse_json(body), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["image", "prompt", *PARAMETERS]) | st.text(max_size=9)


@pytest.mark.triton
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES, JSON, max_size=3))
def test_no_json_object_makes_the_server_fail(url: str, values: dict[str, Any]) -> None:
    body = json.dumps({"image": BASE64} | values)
    answer = httpx.post(url + CAPTIONS, content=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code in (200, 400, 504), (body[-300:], answer.text)
    assert answer.status_code == 200 or error_of(answer)["message"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from(["boundary=x", "", "boundary=", 'boundary="x"; charset=utf-7']))
@example(b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc', "boundary=x")
@example(b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--", "boundary=x")
@example(b"--x\r\n\r\n\r\n--x--", "boundary=x")
def test_no_form_makes_the_server_fail(dead_url: str, body: bytes, boundary: str) -> None:
    headers = {"Content-Type": f"multipart/form-data; {boundary}".removesuffix("; ")}
    answer = httpx.post(dead_url + CAPTIONS, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["code"] in ("BODY_REFUSED", "IMAGE_MISSING")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "image/jpeg", ""])
def test_another_content_type_is_refused_and_named(dead_url: str, kind: str) -> None:
    answer = httpx.post(dead_url + CAPTIONS, content=b"{}", headers={"Content-Type": kind})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "BODY_TYPE_UNKNOWN")
    assert f"'{kind}'" in error_of(answer)["message"]


def test_parameters_in_the_address_are_refused_not_ignored(dead_url: str) -> None:
    answer = httpx.post(f"{dead_url}{CAPTIONS}?length=short", json={"image": BASE64})
    assert answer.status_code == 400
    assert "'length' is in the address" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/captions", 405), ("POST", "/v1/models", 405), ("POST", "/v1/embeddings", 404), ("GET", "/v1/", 404)],
)
def test_a_path_or_method_that_is_not_answered_is_said_in_json(
    dead_url: str, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, dead_url + path)
    assert answer.status_code == status
    assert "is not answered here" in error_of(answer)["message"]


# Limits


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_is_refused_while_it_is_read(dead_url: str, chunked: bool) -> None:
    part = b" " * 2**20
    content: Any = (part for _ in range(29)) if chunked else part * 29
    answer = httpx.post(dead_url + CAPTIONS, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "BODY_TOO_LARGE")


def test_an_image_of_20_mib_fits_as_base64_and_as_a_file(dead_url: str) -> None:
    data = PHOTO.read_bytes().ljust(MAX_IMAGE_BYTES, b"\0")
    as_text = httpx.post(dead_url + CAPTIONS, json={"image": base64.b64encode(data).decode()}, timeout=60)
    as_file = httpx.post(dead_url + CAPTIONS, files={"image": data}, timeout=60)
    for answer in (as_text, as_file):
        assert error_of(answer)["code"] == "SERVER_UNREACHABLE", "it came through to the client"
    too_large = httpx.post(dead_url + CAPTIONS, files={"image": data + b"\0"}, timeout=60)
    assert (too_large.status_code, error_of(too_large)["code"]) == (413, "IMAGE_TOO_LARGE")


def test_more_requests_than_places_are_told_to_come_back_and_a_place_is_given_back() -> None:
    with api_server(DEAD, Options(max_in_flight=1)) as url:
        holder = connect(url)
        holder.sendall(b"POST /v1/captions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert soon(lambda: "captioner_api_in_flight 1.0" in httpx.get(f"{url}/metrics").text)
        answer = httpx.post(url + CAPTIONS, json={"image": BASE64})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "SERVER_BUSY")
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/healthz").status_code == 200
        holder.close()
        assert soon(lambda: "captioner_api_in_flight 0.0" in httpx.get(f"{url}/metrics").text)
        for _ in range(3):
            assert error_of(httpx.post(url + CAPTIONS, json={"image": BASE64}))["code"] == "SERVER_UNREACHABLE"


# Access

KEYS = Options(api_keys=("key-one", "key-two"))
AUTH = Options(auth=("ann", "pass:wörd"))
BOTH = Options(api_keys=("key-one",), auth=("ann", "secret"))


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("options", "opens", "refused"),
    [
        (
            KEYS,
            ["Bearer key-one", "bearer key-two", basic("anyone:key-two")],
            ["Bearer key-three", "Bearer key-on", "Bearer", "key-one", basic("key-one:"), basic("ann:secret")],
        ),
        (
            AUTH,
            [basic("ann:pass:wörd")],
            [basic("ann:pass"), basic("bob:pass:wörd"), "Bearer pass:w", "Basic %%%", "Basic é", "Basic"],
        ),
        (BOTH, ["Bearer key-one", basic("ann:secret"), basic(":key-one")], ["Bearer secret", basic("ann:")]),
    ],
)
def test_a_key_or_password_opens_page_and_api_and_nothing_else_does(
    options: Options, opens: list[str], refused: list[str]
) -> None:
    with api_server(DEAD, options) as url:
        for path in ("/", "/v1/models", "/metrics", "/openapi.json", "//healthz", "/healthz/", "/readyz/../"):
            for header in [None, *refused]:
                headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
                answer = httpx.get(url + path, headers=headers)
                assert answer.status_code == 401, (path, header)
                assert answer.headers["www-authenticate"].startswith("Basic")
                assert error_of(answer)["code"] == "invalid_api_key"
        for header in opens:
            assert httpx.get(url, headers={"Authorization": header}).text == PAGE, header
            answer = httpx.get(f"{url}/v1/models", headers={"Authorization": header})
            assert error_of(answer)["code"] == "SERVER_UNREACHABLE", header
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 503


def test_without_keys_everything_is_open(dead_url: str) -> None:
    assert httpx.get(dead_url).text == PAGE
    assert httpx.get(f"{dead_url}/metrics").status_code == 200


@pytest.mark.parametrize(("options", "status"), [(KEYS, 401), (Options(), 413)])
def test_a_refusal_is_heard_by_a_client_that_sends_all_of_a_large_body_first(options: Options, status: int) -> None:
    with api_server(DEAD, options) as url, send(url, {"image": "A" * 60 * 2**20}) as connection:
        assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "options",
    [
        {"api_keys": ("",)},
        {"api_keys": ("two words",)},
        {"auth": ("", "x")},
        {"auth": ("x", "")},
        {"auth": ("a:b", "x")},
        {"max_in_flight": 0},
    ],
)
def test_options_that_would_lock_everyone_in_or_out_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(StartupRefused):
        Options(**options)


# Refusals


@pytest.mark.parametrize("kind", CaptionerError.by_code.values())
def test_every_refusal_has_a_status_and_only_faults_of_the_server_are_500(kind: type[CaptionerError]) -> None:
    answer = refusal(kind("the sentence"))
    assert answer.status_code == status_of(kind("x"))
    assert 400 <= answer.status_code < 600
    assert kind.status != "INVALID_ARG" or answer.status_code < 500 or kind is AccessDenied
    assert kind.status != "UNAVAILABLE" or answer.status_code in (503, 504)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    assert json.loads(bytes(answer.body))["error"]["message"] == "the sentence"


def test_the_table_of_statuses_can_be_read_by_name() -> None:
    names = [kind.__name__ for kind in STATUSES if kind is not CaptionerError]
    assert all(a < b for a, b in pairwise(names)), names
