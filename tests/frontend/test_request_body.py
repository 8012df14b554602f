"""Malformed request bodies: every one returns an error that says what is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from captioner.wire import PARAMETERS
from frontend.api.request_body import parse_json
from frontend.http_errors import BodyRefused
from tests.support.api_client import BASE64, CAPTIONS, CHAT, error_of


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"temperature": NaN}', "NaN is not a number"),
        (b'{"temperature": -Infinity}', "-Infinity is not a number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        (b'{"prompt": "\\ud83d"}', "half of a character"),
        (b'{"\\uDC00": 1}', "half of a character"),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 12 is 0xff"),
        ('{"image": "x"}'.encode("utf-16"), "not UTF-8"),
    ],
)
@pytest.mark.parametrize("path", [CAPTIONS, CHAT])
def test_a_body_that_is_not_strict_json_is_rejected(dead_url: str, path: str, body: bytes, words: str) -> None:
    answer = httpx.post(dead_url + path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "BODY_REFUSED")
    assert words in error_of(answer)["message"]


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'{"prompt": "\\ud83d\\ude00"}') == {"prompt": "😀"}


@given(st.binary() | st.text().map(str.encode))
@example(b'{"a": 1e999}')
def test_parsing_any_bytes_returns_an_object_or_raises_body_refused(body: bytes) -> None:
    with suppress(BodyRefused):
        assert isinstance(parse_json(body), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["image", "prompt", *PARAMETERS]) | st.text(max_size=9)


@pytest.mark.triton
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES, JSON, max_size=3))
def test_no_json_object_causes_a_server_error(url: str, values: dict[str, Any]) -> None:
    body = json.dumps({"image": BASE64} | values)
    answer = httpx.post(url + CAPTIONS, content=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code in (200, 400, 504), (body[-300:], answer.text)
    assert answer.status_code == 200 or error_of(answer)["message"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from(["boundary=x", "", "boundary=", 'boundary="x"; charset=utf-7']))
@example(b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc', "boundary=x")
@example(b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--", "boundary=x")
@example(b"--x\r\n\r\n\r\n--x--", "boundary=x")
def test_no_form_causes_a_server_error(dead_url: str, body: bytes, boundary: str) -> None:
    headers = {"Content-Type": f"multipart/form-data; {boundary}".removesuffix("; ")}
    answer = httpx.post(dead_url + CAPTIONS, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["code"] in ("BODY_REFUSED", "IMAGE_MISSING")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "video/mp4", ""])
def test_an_unsupported_content_type_is_rejected_by_name(dead_url: str, kind: str) -> None:
    answer = httpx.post(dead_url + CAPTIONS, content=b"{}", headers={"Content-Type": kind})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "BODY_TYPE_UNKNOWN")
    assert f"'{kind}'" in error_of(answer)["message"]


def test_parameters_in_the_query_string_are_rejected(dead_url: str) -> None:
    answer = httpx.post(f"{dead_url}{CAPTIONS}?length=short", json={"image": BASE64})
    assert answer.status_code == 400
    assert "'length' is in the query string" in error_of(answer)["message"]
