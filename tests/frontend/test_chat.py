"""The OpenAI-compatible endpoints: OpenAI's own client and Simon Willison's llm against the real server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.client import Client
from frontend.api.chat import Completion, chat_error
from frontend.api.responses import Events
from frontend.options import Options
from tests.frontend.test_chat_request import IMAGE, KNOWN, body, text, user
from tests.support.api_client import CHAT, PHOTO, BreakingStream, body_of
from tests.support.api_server import DEAD, api_server
from tests.support.cards import CARD
from tests.support.served import Served
from tests.test_wire import JSON


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def messages(words: str = "Describe the image.") -> Any:
    return [user(text(words), IMAGE)]


@pytest.mark.triton
def test_openais_client_gets_the_caption_the_usage_and_the_unused_text(client: openai.OpenAI, served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO)
    raw = client.chat.completions.with_raw_response.create(model="captioner", messages=messages())
    answer = raw.parse()
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == expected.details.model
    assert answer.usage is not None
    assert answer.usage.completion_tokens == expected.details.tokens
    assert answer.usage.prompt_tokens == expected.details.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.completion_tokens + answer.usage.prompt_tokens
    assert raw.headers["x-captioner-unused-text"] == "true"
    extra = answer.model_extra or {}
    assert extra["captioner"]["unused_text"] == "Describe the image."
    assert extra["captioner"]["revision"] == expected.details.revision


@pytest.mark.triton
def test_openais_client_streams_the_same_text(client: openai.OpenAI, served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO)
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="captioner", messages=messages(), stream=True, stream_options=options)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
    assert sum(bool(chunk.choices) for chunk in chunks) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == expected.details.tokens
    assert (chunks[-2].model_extra or {})["captioner"]["unused_text"] == "Describe the image."


@pytest.mark.triton
def test_without_include_usage_no_chunk_has_a_usage_and_the_stream_ends_with_done(url: str) -> None:
    answer = httpx.post(url + CHAT, json=body(stream=True))
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert all("usage" not in json.loads(line) for line in lines[:-1])
    assert "x-captioner-unused-text" not in answer.headers


@pytest.mark.triton
def test_openais_asynchronous_client_streams_and_sends_concurrent_requests(url: str, served: Served) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            stream = await client.chat.completions.create(model="captioner", messages=messages(), stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            create = client.chat.completions.create
            whole = await asyncio.gather(*(create(model="captioner", messages=messages()) for _ in range(4)))
            return [streamed, *(answer.choices[0].message.content for answer in whole)]

    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO).text
    assert asyncio.run(ask()) == [expected] * 5


@pytest.mark.triton
def test_a_token_limit_ends_the_caption_with_length_and_a_large_one_changes_nothing(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    short = create(model="captioner", messages=messages(), max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    large = create(model="captioner", messages=messages(), max_completion_tokens=16_384)
    assert large.choices[0].message.content == create(model="captioner", messages=messages()).choices[0].message.content


@pytest.mark.triton
def test_the_wires_parameters_are_accepted_in_extra_body_and_returned_in_the_details(client: openai.OpenAI) -> None:
    more = {"length": "short", "top_k": 9, "repetition_penalty": 1.5}
    answer = client.chat.completions.create(
        model="captioner", messages=messages(), temperature=0.7, seed=5, extra_body=more
    )
    details = (answer.model_extra or {})["captioner"]
    assert [details[name] for name in ("temperature", "seed", "top_k", "repetition_penalty")] == [0.7, 5, 9, 1.5]


@pytest.mark.triton
@pytest.mark.parametrize(
    ("more", "kind", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"n": 2}, openai.BadRequestError, "PARAMETER_UNSUPPORTED", "n"),
        ({"temperature": 2.5}, openai.BadRequestError, "PARAMETER_INVALID", "temperature"),
        ({"extra_body": {"color": 1}}, openai.BadRequestError, "PARAMETER_UNKNOWN", "color"),
        ({"extra_body": {"style": "rococo"}}, openai.BadRequestError, "PARAMETER_UNSUPPORTED", "style"),
        ({"messages": [user(text("Hi"))]}, openai.BadRequestError, "IMAGE_MISSING", None),
        ({"messages": [user(IMAGE, IMAGE)]}, openai.BadRequestError, "PARAMETER_INVALID", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_the_exception_that_openais_client_has_for_it(
    client: openai.OpenAI, more: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**({"model": "captioner", "messages": messages(), "stream": stream} | more))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.triton
def test_a_broken_image_is_a_bad_request_error(client: openai.OpenAI) -> None:
    half = base64.b64encode(PHOTO.read_bytes()[:2000]).decode()
    broken = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{half}"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="captioner", messages=[user(broken)])  # type: ignore[list-item]
    assert caught.value.code == "IMAGE_BROKEN"


def test_a_stream_that_breaks_ends_with_openais_error_instead_of_done() -> None:
    async def read() -> str:
        stream: Any = BreakingStream()
        completion = Completion(CARD, "", include_usage=False)
        return await body_of(Events(stream, completion.chunks(stream, "A"), chat_error))

    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in asyncio.run(read()).split("\n\n") if line]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["A", " cat"]
    assert last["error"]["code"] == "SERVER_STOPPING"
    assert last["error"]["type"] == "server_error"


def test_an_unreachable_server_and_a_wrong_key_are_openais_errors() -> None:
    with api_server(DEAD, Options(api_keys=("right",))) as url:
        for key, kind in (("right", openai.InternalServerError), ("wrong", openai.AuthenticationError)):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client, pytest.raises(kind):
                client.chat.completions.create(model="captioner", messages=messages())


@pytest.mark.triton
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KNOWN | st.text(max_size=5), JSON, max_size=2))
def test_no_chat_request_causes_a_server_error(url: str, values: dict[str, Any]) -> None:
    content = json.dumps(body() | values)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(url + CHAT, content=content, headers=headers, timeout=30)
    assert answer.status_code in (200, 400, 404, 504), (values, answer.text)


@pytest.mark.triton
@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], marks=pytest.mark.exhaustive),
        pytest.param(["--no-stream"], marks=pytest.mark.exhaustive),
        ["-o", "max_tokens", "4"],
    ],
)
def test_llm_captions_a_photo(served: Served, tmp_path: Path, options: list[str]) -> None:
    with api_server(served.grpc, Options(api_keys=("secret",))) as url:
        model = {"model_id": "captioner", "model_name": "captioner", "api_base": f"{url}/v1", "vision": True}
        listed = json.dumps([model | {"api_key_name": "captioner"}])  # JSON is YAML
        (tmp_path / "extra-openai-models.yaml").write_text(listed)
        (tmp_path / "keys.json").write_text('{"captioner": "secret"}')
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "captioner", "-a", str(PHOTO), "describe", *options],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO, max_tokens=4 if "-o" in options else None)
    assert done.stdout.strip() == expected.text
