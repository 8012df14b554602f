"""OpenAI's Responses API: OpenAI's own client, against the real server and a scripted one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from captioner.client import Client
from tests.support.api_client import DATA_URL, PHOTO
from tests.support.api_server import api_server
from tests.support.scripted_server import TEXT, ScriptedServer
from tests.support.served import Served, assert_soon

IMAGE = {"type": "input_image", "image_url": DATA_URL, "detail": "auto"}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted(scripted_server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with (
        api_server(scripted_server.address) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


def question(*more: dict[str, Any]) -> Any:
    return [{"role": "user", "content": [{"type": "input_text", "text": "Describe the image."}, IMAGE, *more]}]


@pytest.mark.triton
def test_a_response_has_the_caption_its_usage_and_the_unused_text(client: openai.OpenAI, served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO)
    answer = client.responses.create(model="captioner", input=question())
    assert answer.output_text == expected.text
    assert (answer.status, answer.model, answer.error) == ("completed", expected.details.model, None)
    assert answer.usage is not None
    assert answer.usage.output_tokens == expected.details.tokens
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.model_extra or {})["captioner"]["unused_text"] == "Describe the image."


@pytest.mark.triton
def test_a_stream_has_the_events_of_one_message(client: openai.OpenAI, served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected = captioner.caption(PHOTO, length="long").text  # a short caption may leave in two pieces
    with client.responses.stream(model="captioner", input=question(), extra_body={"length": "long"}) as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_response()
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected == final.output_text and len(deltas) > 3


@pytest.mark.triton
def test_a_token_limit_makes_the_response_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="captioner", input=question(), max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None and answer.usage.output_tokens == 3


@pytest.mark.triton
def test_sixteen_at_once_get_the_same_text(url: str) -> None:
    async def ask() -> set[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            create = client.responses.create
            answers = await asyncio.gather(*(create(model="captioner", input=question()) for _ in range(16)))
            return {answer.output_text for answer in answers}

    assert len(asyncio.run(ask())) == 1


@pytest.mark.parametrize(
    ("more", "kind", "code"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"input": "Describe the image."}, openai.BadRequestError, "IMAGE_MISSING"),
        ({"input": question(IMAGE)}, openai.BadRequestError, "PARAMETER_INVALID"),
        ({"input": [{"type": "item_reference", "id": "1"}]}, openai.BadRequestError, "PARAMETER_UNSUPPORTED"),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "PARAMETER_UNSUPPORTED"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "PARAMETER_UNSUPPORTED"),
        ({"temperature": 2.5}, openai.BadRequestError, "PARAMETER_INVALID"),
        ({"extra_body": {"color": 1}}, openai.BadRequestError, "PARAMETER_UNKNOWN"),
    ],
)
def test_a_refusal_is_the_exception_that_openais_client_has_for_it(
    scripted: openai.OpenAI, more: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        scripted.responses.create(**({"model": "captioner", "input": question()} | more))
    assert caught.value.code == code


def test_a_busy_server_is_an_internal_server_error_that_says_when_to_retry(
    scripted: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    scripted.models.list()  # so that the model's card is known
    scripted_server.fault = "busy"
    with pytest.raises(openai.InternalServerError) as caught:
        scripted.responses.create(model="captioner", input=question())
    assert caught.value.status_code == 503 and "retry-after-ms" in caught.value.response.headers


def test_unicode_is_streamed_as_it_is_written(scripted: openai.OpenAI, scripted_server: ScriptedServer) -> None:
    scripted_server.pieces = ("Ein schönes ", "Foto — ", "猫😀")
    with scripted.responses.stream(model="captioner", input=question()) as stream:
        assert stream.get_final_response().output_text == "Ein schönes Foto — 猫😀"
    assert scripted.responses.create(model="captioner", input=question()).output_text == "Ein schönes Foto — 猫😀"


def test_instructions_and_texts_become_the_prompt_and_earlier_images_do_not(
    scripted: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    history = [*question(), {"role": "assistant", "content": TEXT}, *question()]
    answer = scripted.responses.create(model="captioner", instructions="Be brief.", input=history)
    assert answer.instructions == "Be brief."
    assert (answer.model_extra or {})["captioner"]["unused_text"].split("\n\n")[1] == "[an earlier image]"


def test_a_client_that_leaves_a_stream_cancels_its_caption(
    scripted: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    scripted_server.piece_s = 0.3
    with scripted.responses.create(model="captioner", input=question(), stream=True) as stream:
        next(event for event in stream if event.type == "response.output_text.delta")
    assert_soon(scripted_server.cancelled.is_set)
