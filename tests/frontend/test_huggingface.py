"""Hugging Face's image-to-text task, and an image file as the body: huggingface_hub and curl's way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient

from captioner.client import Client
from tests.support.api_client import BASE64, CAPTIONS, PHOTO
from tests.support.api_server import PAGE, api_server
from tests.support.scripted_server import ScriptedServer
from tests.support.served import Served

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def scripted_url(scripted_server: ScriptedServer) -> Iterator[str]:
    with api_server(scripted_server.address) as url:
        yield url


@pytest.mark.triton
def test_the_hubs_client_captions_a_file_at_the_bare_url_and_at_the_models(url: str, served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO).text
    for address in (url, f"{url}/models/captioner"):
        answer = InferenceClient(model=address).image_to_text(PHOTO)
        assert answer.generated_text == expected


@pytest.mark.triton
def test_an_image_file_as_the_body_has_the_caption_of_a_form(url: str) -> None:
    data = PHOTO.read_bytes()
    form = httpx.post(url + CAPTIONS, files={"image": data}, data={"length": "short"}).json()
    for media_type in ("image/jpeg", "application/octet-stream"):
        raw = httpx.post(f"{url}{CAPTIONS}?length=short", content=data, headers={"Content-Type": media_type})
        assert raw.json()["caption"] == form["caption"], raw.text
    streamed = httpx.post(f"{url}{CAPTIONS}?length=short&stream=true", content=data, headers=JPEG)
    assert streamed.headers["content-type"].startswith("text/event-stream")


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own call of httpx
def test_sixteen_at_once_get_the_same_text(url: str) -> None:
    async def ask() -> set[str | None]:
        async with AsyncInferenceClient(model=url) as client:
            answers = await asyncio.gather(*(client.image_to_text(PHOTO) for _ in range(16)))
            return {answer.generated_text for answer in answers}

    assert len(asyncio.run(ask())) == 1


@pytest.mark.parametrize(
    ("query", "content", "status", "code"),
    [
        ("?color=1", b"x", 400, "PARAMETER_UNKNOWN"),
        ("?length=short&length=long", b"x", 400, "PARAMETER_INVALID"),
        ("?max_tokens=many", b"x", 400, "PARAMETER_INVALID"),
        ("", b"", 400, "IMAGE_MISSING"),
        ("", bytes(21 * 2**20), 413, "IMAGE_TOO_LARGE"),
    ],
)
def test_a_file_with_a_wrong_query_or_size_is_refused(
    scripted_url: str, query: str, content: bytes, status: int, code: str
) -> None:
    answer = httpx.post(f"{scripted_url}{CAPTIONS}{query}", content=content, headers=JPEG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/models/other", {"inputs": BASE64}, 404, "is not served"),
        ("/", {}, 400, "inputs is missing"),
        ("/", {"inputs": BASE64, "parameters": 1}, 400, "parameters is 1"),
        ("/", {"inputs": BASE64, "parameters": {"generate_kwargs": 1}}, 400, "generate_kwargs is 1"),
        ("/", {"inputs": BASE64, "parameters": {"max_new_tokens": 0}}, 400, "max_new_tokens is 0"),
        ("/", {"inputs": BASE64, "parameters": {"color": 1}}, 400, "'color' is not a supported parameter"),
        ("/", {"inputs": BASE64, "parameters": {"generate_kwargs": {"penalty_alpha": 0.6}}}, 400, "penalty_alpha is"),
    ],
)
def test_a_refusal_has_the_form_of_the_hubs_api(
    scripted_url: str, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    answer = httpx.post(scripted_url + path, json=body)
    assert answer.status_code == status and words in answer.json()["error"]


def test_parameters_of_the_task_are_the_wires(scripted_url: str) -> None:
    nested = {"generate_kwargs": {"temperature": 0.7, "do_sample": True}, "max_new_tokens": 20}
    for parameters in (nested, {"temperature": 0.7, "max_new_tokens": 20}, None):
        answer = httpx.post(scripted_url, json={"inputs": BASE64, "parameters": parameters})
        assert answer.status_code == 200 and list(answer.json()[0]) == ["generated_text", "details"], answer.text


def test_a_busy_server_has_the_form_of_the_hubs_api(scripted_url: str, scripted_server: ScriptedServer) -> None:
    scripted_server.fault = "busy"
    answer = httpx.post(scripted_url, content=b"x", headers=JPEG)
    assert (answer.status_code, answer.json()["error_type"]) == (503, "SERVER_BUSY")
    assert "retry-after" in answer.headers


def test_the_page_is_still_at_the_root(scripted_url: str) -> None:
    assert httpx.get(scripted_url).text == PAGE
    assert 'endpoint="huggingface"' not in httpx.get(f"{scripted_url}/metrics").text
