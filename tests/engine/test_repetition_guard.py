"""A caption that has begun to loop is told from one that only repeats itself."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from captioner.engine.repetition_guard import FEWEST_TOKENS, LONGEST_PHRASE, TIMES, loops

TOKENS = st.integers(0, 50)
PHRASES = st.lists(TOKENS, min_size=1, max_size=LONGEST_PHRASE)


def plainly(ids: list[int]) -> bool:
    """The same claim, said slowly: some end of the caption is a phrase again and again."""
    return any(
        end[at:] == end[: len(end) - at]
        for at in range(1, LONGEST_PHRASE + 1)
        for end in [ids[-max(FEWEST_TOKENS, TIMES * at) :]]
        if len(end) == max(FEWEST_TOKENS, TIMES * at)
    )


@given(st.lists(TOKENS, max_size=40), PHRASES, st.integers(0, LONGEST_PHRASE))
def test_a_phrase_three_times_is_a_loop_wherever_it_is_cut(before: list[int], phrase: list[int], cut: int) -> None:
    assume(3 * len(phrase) >= FEWEST_TOKENS)
    assert loops([*before, *(phrase * 3)])
    assert loops([*before, *(phrase * 4)[: 3 * len(phrase) + cut % len(phrase)]])


@given(st.lists(TOKENS, max_size=40), st.lists(TOKENS, min_size=1, max_size=2))
def test_a_phrase_of_one_or_two_tokens_must_fill_eight(before: list[int], phrase: list[int]) -> None:
    assert loops([*before, *(phrase * 8)[:8]])
    assert not loops([*range(100, 100 + len(before)), *(phrase * 7)[:7]])


@given(st.lists(TOKENS, max_size=LONGEST_PHRASE, min_size=1, unique=True))
def test_a_phrase_twice_is_no_loop(phrase: list[int]) -> None:
    assert not loops(phrase * 2)


@given(st.lists(st.integers(0, 100), max_size=200, unique=True), TOKENS)
def test_tokens_that_differ_are_no_loop(ids: list[int], token: int) -> None:
    assert not loops(ids)
    assert not loops([token] * 20 + [token + 1])


@given(st.lists(st.integers(0, 1), max_size=80))
def test_it_says_what_its_definition_says(ids: list[int]) -> None:
    assert loops(ids) == plainly(ids)


def test_a_phrase_longer_than_it_looks_for_is_no_loop() -> None:
    assert not loops(list(range(LONGEST_PHRASE + 1)) * 5)


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("a table with a table with a table with a", True),
        ("a cat on a cat on a cat on", True),
        ("a man holding a photo of himself holding a photo of himself", False),
        ("a very very very very big dog", False),
        ("a dog dog dog dog dog dog dog dog", True),
        ("a dog next to a dog", False),
    ],
)
def test_of_real_captions(text: str, looping: bool) -> None:
    words = text.split()
    assert loops([words.index(word) for word in words]) == looping
