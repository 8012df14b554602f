"""Who comes in, and how much at once."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from captioner.errors import StartupRefused
from captioner.wire import MAX_IMAGE_BYTES
from frontend.options import Options
from tests.support.api_client import BASE64, CAPTIONS, PHOTO, connect, error_of, send, soon
from tests.support.api_server import DEAD, PAGE, api_server

KEYS = Options(api_keys=("key-one", "key-two"))
AUTH = Options(auth=("ann", "pass:wörd"))
BOTH = Options(api_keys=("key-one",), auth=("ann", "secret"))


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
