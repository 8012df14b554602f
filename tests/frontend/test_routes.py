"""The API's router: every endpoint has limits and metrics; health checks, metrics and the OpenAPI document."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from captioner.client import Client
from captioner.wire import PARAMETERS
from frontend.api import routes
from frontend.client_identity import CLIENT_ID
from frontend.options import Options
from tests.support.api_client import BASE64, CAPTIONS, error_of, send, soon
from tests.support.api_server import DEAD, api_server
from tests.support.scripted_server import ScriptedServer
from tests.support.served import Served

OWN_PARAMETERS = ("/v1/captions", "/v1/chat/completions", "/v1/responses")  # beside those of the API that is spoken


def add_endpoint(monkeypatch: pytest.MonkeyPatch, cancelled: threading.Event) -> None:
    """Add POST /elsewhere to the API's router. FastAPI parses its body; it waits if the body has `wait`."""

    async def answer(body: dict[str, str]) -> dict[str, str]:
        try:
            if "wait" in body:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return body

    def api_router(*arguments: Any) -> tuple[APIRouter, Any]:
        router, formats = original(*arguments)
        router.add_api_route("/elsewhere", answer, methods=["POST"], name="elsewhere")
        return router, formats

    original = routes.api_router
    monkeypatch.setattr(routes, "api_router", api_router)


def test_an_endpoint_at_any_path_has_limits_cancellation_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()
    add_endpoint(monkeypatch, cancelled)
    with api_server(DEAD, Options(max_in_flight=1)) as url:

        def metrics_have(sample: str) -> bool:
            return sample in httpx.get(f"{url}/metrics").text

        def counted(status: int) -> bool:
            return metrics_have(f'captioner_api_requests_total{{endpoint="elsewhere",status="{status}"}}')

        assert httpx.post(f"{url}/elsewhere", json={"a": "b"}).json() == {"a": "b"}
        assert counted(200)
        too_large = httpx.post(f"{url}/elsewhere", json={"a": "b" * 29 * 2**20}, timeout=60)
        assert (too_large.status_code, error_of(too_large)["code"]) == (413, "BODY_TOO_LARGE")
        assert counted(413)
        with send(url, {"wait": "long"}, "/elsewhere"):
            assert soon(lambda: metrics_have("captioner_api_in_flight 1.0"))
            for path in ("/elsewhere", CAPTIONS):
                busy = httpx.post(url + path, json={})
                assert (busy.status_code, error_of(busy)["code"]) == (503, "SERVER_BUSY")
            assert counted(503)
            assert httpx.get(f"{url}/healthz").status_code == 200
            assert httpx.get(f"{url}/readyz").json() == {"status": "SERVER_UNREACHABLE"}
        assert cancelled.wait(5)
        assert soon(lambda: counted(499) and metrics_have("captioner_api_in_flight 0.0"))


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/captioner"])
def test_head_has_the_status_of_get_and_no_body(dead_url: str, path: str) -> None:
    answer = httpx.head(dead_url + path)
    assert (answer.status_code, answer.content) == (httpx.get(dead_url + path).status_code, b"")


def test_every_answer_has_the_requests_id_and_triton_gets_it(scripted_server: ScriptedServer) -> None:
    with api_server(scripted_server.address, Options(api_keys=("key",))) as url:
        for given, taken in (("trace-1 ö", False), ("x" * 129, False), ("trace-1", True)):
            headers = {b"Authorization": b"Bearer key", b"x-request-id": given.encode("latin-1")}
            answer = httpx.post(url + CAPTIONS, json={"image": BASE64}, headers=headers)
            assert (answer.headers["x-request-id"] == given) == taken
            assert scripted_server.ids[-1] == answer.headers["x-request-id"]
        ids = [httpx.get(url + path).headers["x-request-id"] for path in ("/healthz", "/v1/models", "/nowhere")]
        assert len(set(ids)) == 3


def test_only_the_named_apis_are_served() -> None:
    with api_server(DEAD, Options(apis=("captions",))) as url:
        assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 404
        assert httpx.get(f"{url}/v1/models").status_code == 503
        assert "/v1/chat/completions" not in httpx.get(f"{url}/openapi.json").text


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/captions", 405, "GET is not supported here; POST is"),
        ("POST", "/v1/models", 405, "POST is not supported here; GET is"),
        ("DELETE", "/v1/models/owner/model", 405, "DELETE is not supported here; GET is"),
        ("POST", "/v1/embeddings", 404, "/v1/embeddings does not exist; the endpoints are /v1/captions, "),
        ("GET", "/v1/", 404, "/v1/ does not exist"),
    ],
)
def test_an_unknown_path_or_method_returns_an_error_in_json(
    dead_url: str, method: str, path: str, status: int, words: str
) -> None:
    answer = httpx.request(method, dead_url + path)
    assert answer.status_code == status
    assert words in error_of(answer)["message"]
    assert status != 405 or answer.headers["allow"] in error_of(answer)["message"]


@pytest.mark.triton
def test_every_example_of_the_openapi_document_is_a_valid_request(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    tried = 0
    for path, methods in document["paths"].items():
        for content in methods.get("post", {}).get("requestBody", {}).get("content", {}).values():
            if path in OWN_PARAMETERS and "properties" in content["schema"]:  # not the file as the body
                names = set(content["schema"]["properties"])
                otherwise = {"max_tokens", "system"} if path != "/v1/captions" else set()  # a chat's names and messages
                internal = {"describe", "fit_max_tokens", "stream", CLIENT_ID}
                assert names | otherwise >= set(PARAMETERS) - internal
            if "example" in content:
                answer = httpx.post(url + path.replace("{model}", "captioner"), json=content["example"])
                assert answer.status_code == 200, answer.text
                tried += 1
    assert tried >= 8  # all but Azure's, whose example would be a URL


def test_an_unreachable_captioner_server_returns_503_with_retry_after(dead_url: str) -> None:
    for stream in (True, False):
        answer = httpx.post(dead_url + CAPTIONS, json={"image": BASE64, "stream": stream})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "SERVER_UNREACHABLE")
        assert int(answer.headers["retry-after"]) >= 1


def test_without_a_captioner_server_the_api_is_alive_but_not_ready(dead_url: str) -> None:
    assert httpx.get(f"{dead_url}/healthz").status_code == 200
    answer = httpx.get(f"{dead_url}/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "SERVER_UNREACHABLE"})


def test_readiness_fails_if_the_captioner_server_does_not_respond_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "READY_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with api_server(f"127.0.0.1:{silent.getsockname()[1]}") as url:
            began = time.monotonic()
            answer = httpx.get(f"{url}/readyz", timeout=10)
            assert (answer.status_code, answer.json()) == (503, {"status": "STREAM_STALLED"})
            assert 0.4 < time.monotonic() - began < 4


@pytest.mark.triton
def test_the_api_is_ready_when_the_captioner_server_returns_its_card(url: str, served: Served) -> None:
    with Client(served.grpc) as client:
        card = client.describe()
    expected = {"status": "ready", "model": card.model, "revision": card.revision}
    assert httpx.get(f"{url}/readyz").json() == expected


@pytest.mark.triton
def test_metrics_count_by_endpoint_and_status_and_time_the_first_text(url: str) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    good, bad = (f'captioner_api_requests_total{{endpoint="captions",status="{status}"}}' for status in (200, 400))
    timed = 'captioner_api_first_text_seconds_count{endpoint="captions"}'
    before = value(good), value(bad), value(timed)
    httpx.post(url + CAPTIONS, json={"image": BASE64})
    httpx.post(url + CAPTIONS, json={"image": BASE64, "stream": True})
    httpx.post(url + CAPTIONS, json={})
    after = value(good), value(bad), value(timed)
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 1]
    assert value("captioner_api_in_flight") == 0
