"""Errors are sent as `CODE: message` and are parsed back into the same class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import CaptionerError, ImageBroken, ImageRefused, from_wire

SENTENCE = "31.0 MiB; the limit is 20 MiB"


def subclasses(root: type[CaptionerError]) -> list[type[CaptionerError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in subclasses(child))]


# Other packages define errors too, and whether they are imported depends on the other tests.
KINDS = [kind for kind in subclasses(CaptionerError) if kind.__module__ == CaptionerError.__module__]


def test_each_class_has_its_own_code() -> None:
    everywhere = subclasses(CaptionerError)
    assert len({kind.code for kind in everywhere}) == len(everywhere) == len(CaptionerError.by_code)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_round_trips(kind: type[CaptionerError]) -> None:
    back = from_wire(kind(SENTENCE).wire())
    assert type(back) is kind
    assert str(back) == SENTENCE
    assert back.wire() == kind(SENTENCE).wire(), "the code must not be repeated"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "words",
    [
        "in ensemble 'other_model', ",
        "[StatusCode.INVALID_ARGUMENT] ",
        "Failed to process the request(s) for model 'preprocess', message: ERROR: ",
    ],
)
def test_text_that_triton_puts_before_the_code_is_removed(words: str, kind: type[CaptionerError]) -> None:
    back = from_wire(words + kind(SENTENCE).wire())
    assert type(back) is kind
    assert str(back) == SENTENCE


def test_a_code_inside_the_message_does_not_replace_the_first_code() -> None:
    back = from_wire("PARAMETER_UNSUPPORTED: style 'IMAGE_BROKEN: x' is not known")
    assert back.code == "PARAMETER_UNSUPPORTED"
    assert str(back) == "style 'IMAGE_BROKEN: x' is not known"


@pytest.mark.parametrize("code", [ImageBroken.code, CaptionerError.code])
def test_a_second_class_with_the_same_code_is_a_type_error(code: str) -> None:
    with pytest.raises(TypeError, match=code):
        type("Copy", (ImageRefused,), {"code": code})
    assert from_wire(f"{code}: x").__class__.__name__ != "Copy"


def test_a_class_without_a_code_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="IMAGE_REFUSED"):
        type("Nameless", (ImageRefused,), {})


@given(st.text())
def test_any_text_becomes_an_error_that_keeps_its_message(text: str) -> None:
    back = from_wire(text)
    assert str(back) in text


@given(st.sampled_from(KINDS), st.text())
def test_no_message_changes_the_class(kind: type[CaptionerError], sentence: str) -> None:
    assert type(from_wire(kind(sentence).wire())) is kind
