"""Token ids to text as they come, with a real byte-level tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.text import TextStream
from tests import tiny

TOKENS = tiny.tokenizer()
IDS = st.integers(0, TOKENS.get_vocab_size() - 1)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENS.encode(text, add_special_tokens=False).ids
    return ids


def decode(ids: list[int]) -> str:
    text: str = TOKENS.decode(ids, skip_special_tokens=True)
    return text.lstrip()


def pieces(before: list[int], groups: list[list[int]]) -> list[str]:
    """What is said for each group of ids, and at the end."""
    stream = TextStream(TOKENS, before)
    return [*(stream.push(group) for group in groups), stream.push([], final=True)]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_whole_when_its_tokens_come_one_by_one(text: str) -> None:
    said = pieces([], [[token] for token in encode(text)])
    assert "".join(said) == decode(encode(text)) == text.lstrip()


@given(st.lists(IDS, max_size=6), st.lists(st.lists(IDS, max_size=4), max_size=12))
def test_the_pieces_of_any_tokens_join_to_the_whole_decode(before: list[int], groups: list[list[int]]) -> None:
    ids = [*before, *(token for group in groups for token in group)]
    assert "".join(pieces(before, groups)) == decode(ids)


@given(st.lists(st.lists(IDS, max_size=4), max_size=12))
def test_no_piece_but_the_last_ends_inside_a_character(groups: list[list[int]]) -> None:
    assert not any(piece.endswith("\ufffd") for piece in pieces([], groups)[:-1])


@pytest.mark.parametrize("character", ["é", "猫", "😀", "👩‍🚀"])
def test_a_character_of_several_tokens_is_said_once_it_is_whole(character: str) -> None:
    ids = encode(character)
    assert len(ids) > 1
    said = pieces([], [[token] for token in ids])
    assert "".join(said) == character
    assert "\ufffd" not in "".join(said)
    assert said[0] == ""


def test_a_character_that_never_ends_is_said_at_the_end() -> None:
    assert pieces([], [encode("a cat 😀")[:-1]]) == ["", "a cat \ufffd"]


def test_bytes_that_are_no_character_do_not_hold_back_what_follows() -> None:
    broken = encode("😀")[:1]
    assert pieces([], [broken, encode("a"), encode("b")]) == ["", "\ufffda", "b", ""]


def test_the_words_of_a_prompt_are_part_of_the_caption_and_its_control_tokens_are_not() -> None:
    assert pieces(encode(tiny.BOS + "a photo of"), [encode(" a cat")])[0] == "a photo of a cat"
    assert pieces(encode(tiny.BOS + tiny.SHORT), [encode(" a cat")])[0] == "a cat"
