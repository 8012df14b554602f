"""Parsing chat requests of OpenAI's API: what becomes which parameter, and what is an error."""

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
BASE_MODEL = replace(CARD, follows_instructions=False)
KNOWN = st.sampled_from(["messages", "model", "stream", "stream_options", "stop", *NEUTRAL, *WIRE_NAMES])


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "captioner", "messages": [user(IMAGE)]} | more


def parse(card: ModelCard = CARD, /, **more: Any) -> ChatRequest:
    return chat_request(body(**more), card)


def error_message(**more: Any) -> str:
    with pytest.raises(CaptionerError) as caught:
        parse(**more)
    return str(caught.value)


def test_system_and_user_texts_become_the_prompt_of_an_instruction_tuned_model() -> None:
    messages = [{"role": "system", "content": "Be brief."}, user(text("What is this?"), IMAGE, text("In French."))]
    chat = parse(messages=messages)
    assert (chat.question.prompt, chat.question.unused_text) == ("Be brief.\n\nWhat is this?\n\nIn French.", "")
    assert chat.question.image == DATA_URL


def test_system_texts_are_the_system_turn_of_a_model_that_has_one() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user(IMAGE),
        {"role": "developer", "content": "In French."},
        {"role": "user", "content": " "},
    ]
    chat = parse(replace(CARD, takes_system=True), messages=messages, style="tags")
    assert (chat.question.system, chat.question.prompt) == ("Be brief.\n\nIn French.", None)
    assert chat.parameters == {"style": "tags"}, "a style fits a system turn: only a text of the user sets the prompt"


def test_a_language_fits_a_text_of_the_user() -> None:
    chat = parse(messages=[user(text("What is this?"), IMAGE)], language="pt-BR")
    assert (chat.question.prompt, chat.parameters) == ("What is this?", {"language": "pt-BR"})


def test_a_model_that_does_not_follow_instructions_returns_all_texts_as_unused() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, user(text("What is this?"), IMAGE)]
    chat = parse(BASE_MODEL, messages=messages, length="short")
    assert (chat.question.prompt, chat.question.unused_text) == (None, "Be brief.\n\nWhat is this?")
    assert chat.parameters == {"length": "short"}


def test_earlier_turns_are_returned_as_unused() -> None:
    messages = [user(text("One?"), IMAGE), {"role": "assistant", "content": "A cat."}, user(text("Two?"), IMAGE)]
    chat = parse(messages=messages)
    assert (chat.question.prompt, chat.question.unused_text) == ("Two?", "One?\n\n[an earlier image]\n\nA cat.")


def test_without_a_text_the_models_own_prompt_applies() -> None:
    assert parse(style="plain").question.prompt is None
    assert parse(messages=[user(text(" \n"), IMAGE)]).question.prompt is None


def test_a_text_together_with_a_style_is_an_error() -> None:
    assert "style is given together with a text" in error_message(messages=[user(text("Hi"), IMAGE)], style="plain")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([user(IMAGE, IMAGE, IMAGE)], "messages has 3 images in message 1; it must be exactly one"),
        (
            [user(IMAGE), user(IMAGE, IMAGE), user(text("Hi"))],
            "messages has 2 images in message 2; it must be exactly one",
        ),
        ([user(text("Hi"))], "no user message has an image"),
        ([{"role": "assistant", "content": "Hi"}], "no user message has an image"),
        ([], "messages is missing"),
        ("Hi", "messages is missing or not a list"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0] is not a message with a known role"),
        (["Hi"], "messages[0] is not a message"),
        ([{"role": "user", "content": 5}], "messages[0].content is 5"),
        ([user({"type": "input_audio", "input_audio": {}})], "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": "x"})], "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {"url": "cat.jpg"}})], "must be a data URL or an http(s) URL"),
        ([user({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "ultra"}})], "a detail of auto"),
        ([{"role": "assistant", "tool_calls": [{}]}, user(IMAGE)], "messages[0].tool_calls"),
    ],
)
def test_messages_without_exactly_one_image_to_caption_are_an_error(messages: Any, words: str) -> None:
    assert words in error_message(messages=messages)


def test_the_newest_image_is_captioned_and_the_texts_after_it_instruct() -> None:
    answer = {"role": "assistant", "content": "A cat."}
    chat = parse(messages=[user(text("Old"), IMAGE), user(text("One?"), IMAGE), answer, user(text("Shorter!"))])
    assert (chat.question.prompt, chat.question.unused_text) == (
        "One?\n\nShorter!",
        "Old\n\n[an earlier image]\n\nA cat.",
    )


@pytest.mark.parametrize(
    "name", [*NEUTRAL, "user", "metadata", "max_tokens", "temperature", "stream_options", "verbosity", "anything"]
)
def test_null_means_the_default_of_every_parameter(name: str) -> None:
    assert parse(**{name: None}) == parse()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NEUTRAL.items() for value in values])
def test_a_value_that_changes_nothing_is_accepted(name: str, value: object) -> None:
    assert parse(**{name: value}) == parse()


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
        ("color", 1),
        ("describe", True),
    ],
)
def test_an_unsupported_value_that_would_change_the_answer_is_an_error(name: str, value: object) -> None:
    assert name in error_message(**{name: value}).split(" ")[0]


def test_tools_with_tool_choice_none_are_accepted() -> None:
    assert parse(tools=[{"type": "function"}], tool_choice="none") == parse()


def test_every_parameter_of_the_wire_is_accepted_by_its_own_name() -> None:
    for name in WIRE_NAMES:
        assert parse(**{name: 1}).parameters == {name: 1}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5, "fit_max_tokens": True}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5, "fit_max_tokens": True}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5, "fit_max_tokens": True}),
        ({"max_tokens": 94}, {"max_tokens": 94, "fit_max_tokens": True}),
        ({"max_tokens": 100_000}, {"max_tokens": 2048, "fit_max_tokens": True}),
        ({"top_k": -1}, {}),
        ({"stop": "."}, {"stop": "."}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
    ],
)
def test_openais_parameters_become_the_wires(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert parse(**given).parameters == sent


@pytest.mark.parametrize("value", [0, -1, 2.5, "9", True])
def test_an_invalid_token_limit_is_an_error(value: object) -> None:
    assert "max_completion_tokens is" in error_message(max_completion_tokens=value)


@pytest.mark.parametrize("name", ["owner/model", "captioner", "owner/model@0123456", f"captioner@{REVISION}"])
def test_the_served_model_is_known_by_id_by_revision_and_by_alias(name: str) -> None:
    assert parse(model=name) == parse()


@pytest.mark.parametrize("name", ["gpt-4o", "owner", "owner/model@", "owner/model@99", "", 5, None, "owner/model/"])
def test_any_other_model_is_an_error(name: object) -> None:
    assert "model" in error_message(model=name)


@settings(max_examples=200)
@given(st.dictionaries(KNOWN | st.text(max_size=5), JSON, max_size=4), st.lists(JSON, max_size=3), JSON)
@example({}, [{"role": "user", "content": {"type": "text"}}], None)
def test_any_chat_is_parsed_or_an_error(values: dict[str, Any], messages: list[Any], content: Any) -> None:
    for each in (messages, [{"role": "user", "content": [content]}], [{"role": "user", "content": content}]):
        try:
            chat_request(body(messages=each) | values, CARD)
        except CaptionerError as error:
            assert str(error)  # noqa: PT017
