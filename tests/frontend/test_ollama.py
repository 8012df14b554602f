"""Ollama's API: the ollama client, against the real server and a scripted one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from captioner.client import Client
from frontend.options import Options
from tests.support.api_client import BASE64, PHOTO
from tests.support.api_server import api_server
from tests.support.scripted_server import ScriptedServer
from tests.support.served import Served, assert_soon

FILE = PHOTO.read_bytes()
CHAT: Any = {"model": "captioner", "messages": [{"role": "user", "content": "Describe it.", "images": [BASE64]}]}


@pytest.fixture(scope="module")
def client(url: str) -> ollama.Client:
    return ollama.Client(url)


@pytest.fixture
def scripted_url(scripted_server: ScriptedServer) -> Iterator[str]:
    with api_server(scripted_server.address, Options(aliases=("llava",))) as url:
        yield url


@pytest.fixture
def scripted(scripted_url: str) -> ollama.Client:
    return ollama.Client(scripted_url)


@pytest.mark.triton
def test_chat_and_generate_answer_whole_and_streamed_with_the_caption(client: ollama.Client, served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO)
    message = {"role": "user", "content": "Describe it.", "images": [FILE]}
    whole = client.chat("captioner", [message])
    assert (whole.message.content, whole.done, whole.done_reason) == (expected.text, True, "stop")
    assert (whole.eval_count, whole.prompt_eval_count) == (expected.details.tokens, expected.details.prompt_tokens)
    assert whole.total_duration and whole.eval_duration and whole.total_duration >= whole.eval_duration
    # Sampled text is longer: a short caption may leave in two pieces.
    options = {"temperature": 2.0, "seed": 3, "num_predict": 40}
    with Client(served.grpc) as captioner:
        sampled = captioner.caption(PHOTO, temperature=2.0, seed=3, max_tokens=40, fit_max_tokens=True)
    chunks = list(client.chat("captioner:latest", [message], stream=True, options=options))
    assert "".join(chunk.message.content or "" for chunk in chunks) == sampled.text and len(chunks) > 4
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert client.generate("captioner", "Describe it.", images=[FILE]).response == expected.text
    pieces = client.generate("captioner", "Describe it.", images=[FILE], stream=True)
    assert "".join(piece.response or "" for piece in pieces) == expected.text


@pytest.mark.triton
def test_options_are_the_wires_parameters(client: ollama.Client, url: str) -> None:
    options = {"num_predict": 3, "temperature": 0.7, "seed": 5, "top_k": 9, "repeat_penalty": 1.5, "num_ctx": 4096}
    answer = client.generate("captioner", "", images=[FILE], options=options)
    assert (answer.done_reason, answer.eval_count) == ("length", 3)
    raw = {"model": "captioner", "images": [BASE64], "stream": False, "options": options}
    details = httpx.post(f"{url}/api/generate", json=raw).json()["captioner"]
    assert [details[name] for name in ("temperature", "seed", "top_k", "repetition_penalty")] == [0.7, 5, 9, 1.5]


@pytest.mark.triton
def test_sixteen_at_once_get_the_same_text(url: str) -> None:
    async def ask() -> set[str]:
        client = ollama.AsyncClient(url)
        answers = await asyncio.gather(*(client.generate("captioner", "", images=[FILE]) for _ in range(16)))
        return {answer.response or "" for answer in answers}

    assert len(asyncio.run(ask())) == 1


def test_the_model_is_listed_shown_and_loaded_by_each_of_its_names(scripted: ollama.Client) -> None:
    assert [model.model for model in scripted.list().models] == ["captioner:latest", "llava:latest"]
    assert [model.model for model in scripted.ps().models] == ["captioner:latest"]
    shown = scripted.show("llava")
    assert shown.capabilities == ["completion", "vision"] and shown.license
    assert scripted.generate("llava:latest").done_reason == "load"
    assert scripted.chat("captioner", []).done_reason == "load"
    assert scripted.generate("captioner", keep_alive=0).done_reason == "unload"


def test_the_version_is_one_of_ollamas(scripted_url: str) -> None:
    major, *_ = httpx.get(f"{scripted_url}/api/version").json()["version"].split(".")
    assert major.isdecimal()


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"model": "other"}, 404, 'the model "other" is not served'),
        ({"messages": [{"role": "user", "content": "Hi"}]}, 400, "no user message has an image"),
        ({"messages": [{"role": "user", "content": "Hi", "images": ["!"]}]}, 400, ""),
        ({"messages": [{"role": "user", "content": "Hi", "images": [BASE64, BASE64]}]}, 400, "has 2 images"),
        ({"format": "json"}, 400, "format is"),
        ({"tools": [{"type": "function"}]}, 400, "tools is"),
        ({"think": True}, 400, "think is true"),
        ({"options": {"num_predict": 0}}, 400, "num_predict is 0"),
        ({"options": {"min_p": 0.1}}, 400, "min_p is 0.1"),
        ({"options": {"color": 1}}, 400, "'color' is not a supported parameter"),
        ({"options": 1}, 400, "options is 1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_ollamas_form(
    scripted_url: str, scripted_server: ScriptedServer, more: dict[str, Any], status: int, words: str, stream: bool
) -> None:
    if not words:
        scripted_server.fault = "refused"
        httpx.get(f"{scripted_url}/api/tags")
    answer = httpx.post(f"{scripted_url}/api/chat", json=CHAT | {"stream": stream} | more)
    assert answer.status_code in (status, 503) and words in answer.json()["error"]


def test_ollamas_client_raises_the_refusal(scripted: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="is not served") as caught:
        scripted.chat("other", CHAT["messages"])
    assert caught.value.status_code == 404


def test_neutral_values_and_null_are_accepted(scripted_url: str) -> None:
    neutral: dict[str, Any] = {
        "format": None,
        "think": False,
        "tools": [],
        "keep_alive": "5m",
        "options": {"mirostat": 0, "num_gpu": 1},
    }
    unlimited: dict[str, Any] = {"options": {"num_predict": -1, "top_p": 0, "stop": "."}}
    for more in (neutral, unlimited):
        answer = httpx.post(f"{scripted_url}/api/chat", json=CHAT | {"stream": False} | more)
        assert answer.status_code == 200, answer.text


def test_a_busy_server_and_a_broken_stream_have_ollamas_form(
    scripted_url: str, scripted_server: ScriptedServer
) -> None:
    httpx.get(f"{scripted_url}/api/tags")  # so that the model's card is known
    scripted_server.fault = "busy"
    busy = httpx.post(f"{scripted_url}/api/chat", json=CHAT)
    assert (busy.status_code, busy.json()["code"]) == (503, "SERVER_BUSY")
    scripted_server.fault = "broken"
    *_, last = httpx.post(f"{scripted_url}/api/chat", json=CHAT, timeout=60).text.splitlines()
    assert '"error":' in last


def test_unicode_is_streamed_as_it_is_written(scripted: ollama.Client, scripted_server: ScriptedServer) -> None:
    scripted_server.pieces = ("Ein schönes ", "Foto — ", "猫😀")
    pieces = scripted.generate("captioner", "", images=[FILE], stream=True)
    assert "".join(piece.response or "" for piece in pieces) == "Ein schönes Foto — 猫😀"


def test_a_client_that_leaves_a_stream_cancels_its_caption(scripted_url: str, scripted_server: ScriptedServer) -> None:
    scripted_server.piece_s = 0.3
    with httpx.stream("POST", f"{scripted_url}/api/chat", json=CHAT) as answer:
        next(answer.iter_lines())
    assert_soon(scripted_server.cancelled.is_set)
