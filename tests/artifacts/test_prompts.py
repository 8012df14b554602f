"""Styles, lengths, extras and a name are rendered to one exact prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.artifacts.prompts import PromptTable
from captioner.errors import ParameterInvalid, ParameterUnsupported

TABLE = PromptTable(
    styles={
        "descriptive": {"short": "Briefly.", "long": "At length."},
        "character": {"any": "Describe {name}."},
    },
    default_style="descriptive",
    default_length="long",
    extras={"camera": "Name the camera.", "pose": "How does {name} stand?"},
)


@pytest.mark.parametrize(
    ("style", "length", "extras", "name", "prompt"),
    [
        (None, None, (), None, "At length."),
        ("descriptive", "short", (), None, "Briefly."),
        (None, "short", ("camera",), None, "Briefly. Name the camera."),
        ("character", None, (), "Ada", "Describe Ada."),
        ("character", "any", ("pose", "camera"), "Ada", "Describe Ada. How does Ada stand? Name the camera."),
    ],
)
def test_each_choice_has_one_exact_prompt(
    style: str | None, length: str | None, extras: tuple[str, ...], name: str | None, prompt: str
) -> None:
    assert TABLE.render(style, length, extras, name) == prompt


def test_a_style_without_the_default_length_uses_its_first_length() -> None:
    assert TABLE.render("character", None, (), "Ada") == "Describe Ada."


@pytest.mark.parametrize(
    ("style", "length", "extras", "refused", "known"),
    [
        ("poem", None, (), "style 'poem'", "descriptive, character"),
        ("", None, (), "style ''", "descriptive, character"),
        (None, "any", (), "length 'any'", "short, long"),
        (None, "", (), "length ''", "short, long"),
        (None, None, ("camera", "mood"), "extra 'mood'", "camera, pose"),
    ],
)
def test_the_error_for_an_unknown_choice_names_it_and_the_known_choices(
    style: str | None, length: str | None, extras: tuple[str, ...], refused: str, known: str
) -> None:
    with pytest.raises(ParameterUnsupported) as caught:
        TABLE.render(style, length, extras)
    assert refused in str(caught.value)
    assert known in str(caught.value)


def test_a_name_is_refused_if_the_prompt_has_no_field_for_it() -> None:
    with pytest.raises(ParameterUnsupported, match="'Ada'"):
        TABLE.render("descriptive", None, (), "Ada")


def test_a_prompt_with_a_field_for_a_name_is_refused_without_a_name() -> None:
    with pytest.raises(ParameterInvalid, match="name is not given"):
        TABLE.render("character", None)
    assert TABLE.template("character", None) == "Describe {name}."


def test_a_language_adds_its_sentence_to_any_prompt() -> None:
    table = replace(TABLE, language="Write {language}.")
    assert table.in_language(table.render(None, "short"), "German") == "Briefly. Write German."
    assert table.in_language("Who is {language}?\n", "German") == "Who is {language}? Write German."


def test_the_error_of_a_model_without_extras_says_so() -> None:
    with pytest.raises(ParameterUnsupported, match="it knows none"):
        PromptTable({"plain": {"any": ""}}, "plain", "any").render(None, None, ("camera",))


def test_takes_name_tells_whether_any_prompt_has_a_field_for_a_name() -> None:
    assert TABLE.takes_name
    assert PromptTable({"plain": {"any": "x"}}, "plain", "any", {"pose": "{name}"}).takes_name
    assert not PromptTable({"plain": {"any": "x"}}, "plain", "any", {"pose": "y"}).takes_name


@given(st.text())
def test_a_name_appears_unchanged_in_the_prompt(name: str) -> None:
    assert TABLE.render("character", None, (), name) == f"Describe {name}."
