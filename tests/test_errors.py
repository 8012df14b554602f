"""Refusals travel as `CODE: sentence` and come back as themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import CaptionerError, ImageBroken, ImageRefused, from_wire

SENTENCE = "31.0 MiB; the limit is 20 MiB"


def family(root: type[CaptionerError]) -> list[type[CaptionerError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in family(child))]


# Those that a door defines for itself are there once it is imported.
KINDS = [kind for kind in family(CaptionerError) if kind.__module__ == CaptionerError.__module__]


def test_each_class_has_a_code_of_its_own() -> None:
    everywhere = family(CaptionerError)
    assert len({kind.code for kind in everywhere}) == len(everywhere) == len(CaptionerError.by_code)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_from_the_wire_as_itself(kind: type[CaptionerError]) -> None:
    back = from_wire(kind(SENTENCE).wire())
    assert type(back) is kind
    assert str(back) == SENTENCE
    assert back.wire() == kind(SENTENCE).wire(), "the code must not be written twice"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "words",
    [
        "in ensemble 'image_encoder', ",
        "[StatusCode.INVALID_ARGUMENT] ",
        "Failed to process the request(s) for model 'preprocess', message: ERROR: ",
    ],
)
def test_the_words_that_triton_puts_in_front_do_not_hide_the_code(words: str, kind: type[CaptionerError]) -> None:
    back = from_wire(words + kind(SENTENCE).wire())
    assert type(back) is kind
    assert str(back) == SENTENCE


def test_a_code_inside_a_sentence_does_not_replace_the_one_in_front() -> None:
    back = from_wire("PARAMETER_UNSUPPORTED: style 'IMAGE_BROKEN: x' is not known")
    assert back.code == "PARAMETER_UNSUPPORTED"
    assert str(back) == "style 'IMAGE_BROKEN: x' is not known"


@pytest.mark.parametrize("code", [ImageBroken.code, CaptionerError.code])
def test_a_second_class_with_the_same_code_cannot_be_defined(code: str) -> None:
    with pytest.raises(TypeError, match=code):
        type("Copy", (ImageRefused,), {"code": code})
    assert from_wire(f"{code}: x").__class__.__name__ != "Copy"


def test_a_class_that_forgets_its_code_cannot_be_defined() -> None:
    with pytest.raises(TypeError, match="IMAGE_REFUSED"):
        type("Nameless", (ImageRefused,), {})


@given(st.text())
def test_any_text_becomes_some_error_that_keeps_its_words(text: str) -> None:
    back = from_wire(text)
    assert str(back) in text


@given(st.sampled_from(KINDS), st.text())
def test_no_sentence_breaks_its_own_code(kind: type[CaptionerError], sentence: str) -> None:
    assert type(from_wire(kind(sentence).wire())) is kind
