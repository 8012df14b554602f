"""The routes by which SageMaker and Vertex AI call a container, as their documentation describes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from frontend.options import Options
from tests.support.api_client import BASE64, PHOTO
from tests.support.api_server import DEAD, api_server
from tests.support.scripted_server import TEXT, ScriptedServer

VERTEX = Options(vertex_health="/v1/endpoints/7/health", vertex_predict="/v1/endpoints/7/predict", max_in_flight=1)


@pytest.fixture
def url(scripted_server: ScriptedServer) -> Iterator[str]:
    with api_server(scripted_server.address, VERTEX) as url:
        yield url


def test_ping_and_vertexs_health_route_are_200_only_while_a_server_answers(url: str) -> None:
    with api_server(DEAD, VERTEX) as dead_url:
        for path in ("/ping", VERTEX.vertex_health):
            assert httpx.get(url + path).status_code == 200
            assert httpx.get(dead_url + path).status_code == 503


def test_health_needs_no_key() -> None:
    with api_server(DEAD, Options(api_keys=("key",), vertex_health="/health")) as url:
        assert {httpx.get(url + path).status_code for path in ("/ping", "/health")} == {503}
        assert httpx.post(f"{url}/invocations").status_code == 401


@pytest.mark.parametrize("media_type", ["image/jpeg", "application/x-image", "application/json"])
def test_an_invocation_is_a_request_of_the_captions_endpoint(url: str, media_type: str) -> None:
    if media_type == "application/json":
        answer = httpx.post(f"{url}/invocations", json={"image": BASE64, "length": "short"})
    else:
        answer = httpx.post(f"{url}/invocations", content=PHOTO.read_bytes(), headers={"Content-Type": media_type})
    assert answer.json()["caption"] == TEXT


def test_an_invocation_streams(url: str) -> None:
    headers = {"Content-Type": "image/jpeg", "Accept": "text/event-stream"}
    answer = httpx.post(f"{url}/invocations", content=PHOTO.read_bytes(), headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream") and "event: done" in answer.text


def test_a_prediction_has_one_caption_for_each_instance_in_order(url: str, scripted_server: ScriptedServer) -> None:
    scripted_server.delays_s = {PHOTO.read_bytes(): 0.3}
    instances = [{"image": BASE64}, {"image_bytes": {"b64": BASE64}, "length": "short"}]
    answer = httpx.post(url + VERTEX.vertex_predict, json={"instances": instances, "parameters": {"max_tokens": 5}})
    predictions = answer.json()["predictions"]
    assert [each["caption"] for each in predictions] == [TEXT, TEXT]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "instances must be a list of 1 to 64 requests"),
        ({"instances": []}, "instances must be a list"),
        ({"instances": [{"image": BASE64}] * 65}, "instances must be a list"),
        ({"instances": [1]}, "an instance is 1"),
        ({"instances": [{}]}, "no image"),
        ({"instances": [{"image": BASE64}, {"image": BASE64, "color": 1}]}, "'color' is not a parameter"),
        ({"instances": [{"image": BASE64}], "parameters": 1}, "parameters is 1"),
    ],
)
def test_a_wrong_prediction_is_refused(url: str, body: dict[str, object], words: str) -> None:
    answer = httpx.post(url + VERTEX.vertex_predict, json=body)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_vertexs_environment_names_port_and_routes() -> None:
    environment = os.environ | {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": "predict", "AIP_HEALTH_ROUTE": "/health"}
    command = [sys.executable, "-m", "frontend"]
    shown = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "default: 8080" in shown.stdout
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "AIP_PREDICT_ROUTE is 'predict'; it must begin with /" in refused.stderr
