"""What a chat asks for in OpenAI's words, and what of it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from captioner.errors import CaptionerError
from captioner.wire import ModelCard
from frontend.api.chat_request import NEUTRAL, WIRE_NAMES, ChatRequest, chat_request
from tests.support.api_client import DATA_URL
from tests.support.cards import CARD, REVISION
from tests.test_wire import JSON

IMAGE = {"type": "image_url", "image_url": {"url": DATA_URL}}
CONTINUES = replace(CARD, follows_instructions=False)
KNOWN = st.sampled_from(["messages", "model", "stream", "stream_options", "stop", *NEUTRAL, *WIRE_NAMES])


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


@pytest.mark.parametrize("name", ["owner/model", "captioner", "owner/model@0123456", f"captioner@{REVISION}"])
def test_the_served_model_is_known_by_its_id_its_revision_and_the_alias(name: str) -> None:
    assert asked(model=name) == asked()


@pytest.mark.parametrize("name", ["gpt-4o", "owner", "owner/model@", "owner/model@99", "", 5, None, "owner/model/"])
def test_another_model_is_refused_by_name(name: object) -> None:
    assert "model" in refused(model=name)


@settings(max_examples=300)
@given(st.dictionaries(KNOWN | st.text(max_size=5), JSON, max_size=4), st.lists(JSON, max_size=3), JSON)
@example({}, [{"role": "user", "content": {"type": "text"}}], None)
def test_no_chat_is_a_fault(values: dict[str, Any], messages: list[Any], content: Any) -> None:
    for each in (messages, [{"role": "user", "content": [content]}], [{"role": "user", "content": content}]):
        try:
            chat_request(body(messages=each) | values, CARD)
        except CaptionerError as error:
            assert str(error)  # noqa: PT017
