"""OpenAI's door: what a chat asks for, and OpenAI's own client and Simon Willison's llm against the real server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from captioner.client import Client
from captioner.errors import CaptionerError
from captioner.wire import ModelCard
from frontend.chat import Completion
from frontend.chat_request import NEUTRAL, WIRE_NAMES, ChatRequest, chat_request
from frontend.options import Options
from tests.api_server import DEAD, api_server
from tests.served import ROOT, Served
from tests.test_api import Breaking
from tests.test_wire import JSON

PHOTO = ROOT / "captioner/examples/cat.jpg"
DATA_URL = f"data:image/jpeg;base64,{base64.b64encode(PHOTO.read_bytes()).decode()}"
IMAGE = {"type": "image_url", "image_url": {"url": DATA_URL}}
CARD = ModelCard(
    model="owner/model",
    revision="0123456789abcdef",
    version="1",
    license="mit",
    base_model="",
    intended_use="",
    styles={"plain": ["short"]},
    extras={},
    takes_name=False,
    default_style="plain",
    default_length="short",
    max_tokens=64,
    device="cpu",
    precision="fp32",
    encoder_precision="fp32",
    follows_instructions=True,
)
CONTINUES = replace(CARD, follows_instructions=False)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "captioner", "messages": [user(IMAGE)]} | more


def asked(card: ModelCard = CARD, /, **more: Any) -> ChatRequest:
    return chat_request(body(**more), card)


def refused(**more: Any) -> str:
    with pytest.raises(CaptionerError) as caught:
        asked(**more)
    return str(caught.value)


# What a chat asks for


def test_system_and_user_texts_become_the_prompt_of_a_model_that_follows_instructions() -> None:
    messages = [{"role": "system", "content": "Be brief."}, user(text("What is this?"), IMAGE, text("In French."))]
    chat = asked(messages=messages)
    assert (chat.prompt, chat.unused_text) == ("Be brief.\n\nWhat is this?\n\nIn French.", "")
    assert chat.image == DATA_URL


def test_a_model_that_continues_its_prompt_uses_no_text_and_all_of_it_is_named() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, user(text("What is this?"), IMAGE)]
    chat = asked(CONTINUES, messages=messages, length="short")
    assert (chat.prompt, chat.unused_text) == (None, "Be brief.\n\nWhat is this?")
    assert chat.parameters == {"length": "short"}


def test_earlier_turns_are_not_read_and_are_named() -> None:
    messages = [user(text("One?"), IMAGE), {"role": "assistant", "content": "A cat."}, user(text("Two?"), IMAGE)]
    chat = asked(messages=messages)
    assert (chat.prompt, chat.unused_text) == ("Two?", "One?\n\n[an earlier image]\n\nA cat.")


def test_without_any_text_the_models_own_prompt_holds() -> None:
    assert asked(style="plain").prompt is None
    assert asked(messages=[user(text(" \n"), IMAGE)]).prompt is None


def test_a_text_and_a_style_that_both_say_what_to_write_are_refused() -> None:
    assert "style is given, and a text too" in refused(messages=[user(text("Hi"), IMAGE)], style="plain")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([user(IMAGE, IMAGE, IMAGE)], "has 3 images in the last user message; it must be exactly one"),
        ([user(text("Hi"))], "the last user message has no image"),
        ([user(IMAGE), user(text("And this?"))], "the last user message has no image"),
        ([{"role": "assistant", "content": "Hi"}], "the last user message has no image"),
        ([], "messages is missing"),
        ("Hi", "messages is missing or no list"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0] is no message with a role"),
        (["Hi"], "messages[0] is no message"),
        ([{"role": "user", "content": 5}], "messages[0].content is 5"),
        ([user({"type": "input_audio", "input_audio": {}})], "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": "x"})], "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {"url": "cat.jpg"}})], "must be a data URL or an address"),
        ([user({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "ultra"}})], "a detail of auto"),
        ([{"role": "assistant", "tool_calls": [{}]}, user(IMAGE)], "messages[0].tool_calls"),
    ],
)
def test_messages_that_are_no_captioning_of_one_image_are_refused_in_words(messages: Any, words: str) -> None:
    assert words in refused(messages=messages)


@pytest.mark.parametrize("name", [*NEUTRAL, "user", "metadata", "max_tokens", "temperature", "stream_options"])
def test_null_is_the_default_of_everything(name: str) -> None:
    assert asked(**{name: None}) == asked()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NEUTRAL.items() for value in values])
def test_a_value_that_changes_nothing_is_accepted(name: str, value: object) -> None:
    assert asked(**{name: value}) == asked()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("frequency_penalty", 0.1),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("modalities", ["audio"]),
        ("store", True),
        ("reasoning_effort", "low"),
        ("colour", 1),
        ("describe", True),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused_by_name(name: str, value: object) -> None:
    assert name in refused(**{name: value}).split(" ")[0]


def test_tools_that_must_not_be_called_change_nothing() -> None:
    assert asked(tools=[{"type": "function"}], tool_choice="none") == asked()


def test_every_parameter_of_the_wire_is_taken_by_its_own_name() -> None:
    for name in WIRE_NAMES:
        assert asked(**{name: 1}).parameters == {name: 1}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"max_tokens": 64}, {}),
        ({"max_tokens": 100_000}, {}),
        ({"stop": "."}, {"stop": ["."]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
    ],
)
def test_openais_names_are_the_wires(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert asked(**given).parameters == sent


@pytest.mark.parametrize("value", [0, -1, 2.5, "9", True])
def test_a_bound_of_tokens_that_is_none_is_refused(value: object) -> None:
    assert "max_completion_tokens is" in refused(max_completion_tokens=value)


@pytest.mark.parametrize("name", ["owner/model", "captioner", "owner/model@0123456", "captioner@0123456789abcdef"])
def test_the_served_model_is_known_by_its_id_its_revision_and_the_alias(name: str) -> None:
    assert asked(model=name) == asked()


@pytest.mark.parametrize("name", ["gpt-4o", "owner", "owner/model@", "owner/model@99", "", 5, None, "owner/model/"])
def test_another_model_is_refused_by_name(name: object) -> None:
    assert "model" in refused(model=name)


KNOWN = st.sampled_from(["messages", "model", "stream", "stream_options", "stop", *NEUTRAL, *WIRE_NAMES])


@settings(max_examples=300)
@given(st.dictionaries(KNOWN | st.text(max_size=5), JSON, max_size=4), st.lists(JSON, max_size=3), JSON)
@example({}, [{"role": "user", "content": {"type": "text"}}], None)
def test_no_chat_is_a_fault(values: dict[str, Any], messages: list[Any], content: Any) -> None:
    for each in (messages, [{"role": "user", "content": [content]}], [{"role": "user", "content": content}]):
        try:
            chat_request(body(messages=each) | values, CARD)
        except CaptionerError as error:
            assert str(error)  # noqa: PT017


# The door itself


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    with api_server(served.grpc) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def messages(words: str = "Describe the image.") -> Any:
    return [user(text(words), IMAGE)]


@pytest.mark.triton
def test_openais_client_gets_the_caption_its_usage_and_what_was_not_used(client: openai.OpenAI, served: Served) -> None:
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
    said = answer.model_extra or {}
    assert said["captioner"]["unused_text"] == "Describe the image."
    assert said["captioner"]["revision"] == expected.details.revision


@pytest.mark.triton
def test_openais_client_streams_the_same_words(client: openai.OpenAI, served: Served) -> None:
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
def test_without_include_usage_no_chunk_speaks_of_it_and_the_stream_says_that_it_is_done(url: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json=body(stream=True))
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert all("usage" not in json.loads(line) for line in lines[:-1])
    assert "x-captioner-unused-text" not in answer.headers


@pytest.mark.triton
def test_openais_asynchronous_client_streams_and_answers_many_at_once(url: str, served: Served) -> None:
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
def test_a_bound_of_tokens_ends_the_caption_with_length_and_a_large_one_changes_nothing(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    short = create(model="captioner", messages=messages(), max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    large = create(model="captioner", messages=messages(), max_completion_tokens=16_384)
    assert large.choices[0].message.content == create(model="captioner", messages=messages()).choices[0].message.content


@pytest.mark.triton
def test_the_wires_parameters_go_in_extra_body_and_come_back_in_the_details(client: openai.OpenAI) -> None:
    more = {"length": "short", "top_k": 9, "repetition_penalty": 1.5}
    answer = client.chat.completions.create(
        model="captioner", messages=messages(), temperature=0.7, seed=5, extra_body=more
    )
    details = (answer.model_extra or {})["captioner"]
    assert [details[name] for name in ("temperature", "seed", "top_k", "repetition_penalty")] == [0.7, 5, 9, 1.5]


@pytest.mark.triton
def test_the_models_are_the_one_served_with_its_card(client: openai.OpenAI, served: Served) -> None:
    with Client(served.grpc) as captioner:
        card = captioner.describe()
    [model] = client.models.list().data
    assert model.id == card.model
    assert (model.model_extra or {})["styles"] == card.styles
    assert (model.model_extra or {})["license"] == card.license
    for name in (card.model, "captioner", f"{card.model}@{card.revision}"):
        assert client.models.retrieve(name).id == card.model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("owner/other")


@pytest.mark.triton
@pytest.mark.parametrize(
    ("more", "kind", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"n": 2}, openai.BadRequestError, "PARAMETER_UNSUPPORTED", "n"),
        ({"temperature": 2.5}, openai.BadRequestError, "PARAMETER_INVALID", "temperature"),
        ({"extra_body": {"colour": 1}}, openai.BadRequestError, "PARAMETER_UNKNOWN", "colour"),
        ({"extra_body": {"style": "rococo"}}, openai.BadRequestError, "PARAMETER_UNSUPPORTED", "style"),
        ({"messages": [user(text("Hi"))]}, openai.BadRequestError, "IMAGE_MISSING", None),
        ({"messages": [user(IMAGE, IMAGE)]}, openai.BadRequestError, "PARAMETER_INVALID", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_the_error_that_openais_client_has_for_it(
    client: openai.OpenAI, more: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**({"model": "captioner", "messages": messages(), "stream": stream} | more))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.triton
def test_a_broken_image_is_a_bad_request(client: openai.OpenAI) -> None:
    half = base64.b64encode(PHOTO.read_bytes()[:2000]).decode()
    broken = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{half}"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="captioner", messages=[user(broken)])  # type: ignore[list-item]
    assert caught.value.code == "IMAGE_BROKEN"


def test_a_stream_that_breaks_ends_with_openais_error_and_is_not_done() -> None:
    async def read() -> str:
        stream: Any = Breaking()
        completion = Completion(CARD, asked())
        return b"".join([each async for each in completion.chunks(stream, "A")]).decode()

    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in asyncio.run(read()).split("\n\n") if line]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["A", " cat"]
    assert last["error"]["code"] == "SERVER_STOPPING"
    assert last["error"]["type"] == "server_error"


def test_a_server_that_is_away_and_a_wrong_key_are_openais_errors_as_well() -> None:
    with api_server(DEAD, Options(api_keys=("right",))) as url:
        for key, kind in (("right", openai.InternalServerError), ("wrong", openai.AuthenticationError)):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client, pytest.raises(kind):
                client.chat.completions.create(model="captioner", messages=messages())


@pytest.mark.triton
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KNOWN | st.text(max_size=5), JSON, max_size=2))
def test_no_chat_makes_the_server_fail(url: str, values: dict[str, Any]) -> None:
    content = json.dumps(body() | values)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers, timeout=30)
    assert answer.status_code in (200, 400, 404, 504), (values, answer.text)


@pytest.mark.triton
@pytest.mark.parametrize("options", [[], ["--no-stream"], ["-o", "max_tokens", "4"]])
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
