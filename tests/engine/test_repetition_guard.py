"""The repetition guard finds looping captions and accepts captions that repeat a word or two."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from captioner.engine.repetition_guard import MAX_PHRASE_TOKENS, MIN_REPEATS, MIN_RUN_TOKENS, is_repeating

TOKENS = st.integers(0, 50)
PHRASES = st.lists(TOKENS, min_size=1, max_size=MAX_PHRASE_TOKENS)


def reference(ids: list[int]) -> bool:
    """Compute the same slowly: whether some suffix of the caption is one repeated phrase."""
    return any(
        end[at:] == end[: len(end) - at]
        for at in range(1, MAX_PHRASE_TOKENS + 1)
        for end in [ids[-max(MIN_RUN_TOKENS, MIN_REPEATS * at) :]]
        if len(end) == max(MIN_RUN_TOKENS, MIN_REPEATS * at)
    )


@given(st.lists(TOKENS, max_size=40), PHRASES, st.integers(0, MAX_PHRASE_TOKENS))
def test_a_phrase_said_three_times_is_a_loop_wherever_it_is_cut(before: list[int], phrase: list[int], cut: int) -> None:
    assume(3 * len(phrase) >= MIN_RUN_TOKENS)
    assert is_repeating([*before, *(phrase * 3)])
    assert is_repeating([*before, *(phrase * 4)[: 3 * len(phrase) + cut % len(phrase)]])


@given(st.lists(TOKENS, max_size=40), st.lists(TOKENS, min_size=1, max_size=2))
def test_a_phrase_of_one_or_two_tokens_must_fill_eight_tokens(before: list[int], phrase: list[int]) -> None:
    assert is_repeating([*before, *(phrase * 8)[:8]])
    assert not is_repeating([*range(100, 100 + len(before)), *(phrase * 7)[:7]])


@given(st.lists(TOKENS, max_size=MAX_PHRASE_TOKENS, min_size=1, unique=True))
def test_a_phrase_said_twice_is_not_a_loop(phrase: list[int]) -> None:
    assert not is_repeating(phrase * 2)


@given(st.lists(st.integers(0, 100), max_size=200, unique=True), TOKENS)
def test_distinct_tokens_are_not_a_loop(ids: list[int], token: int) -> None:
    assert not is_repeating(ids)
    assert not is_repeating([token] * 20 + [token + 1])


@given(st.lists(st.integers(0, 1), max_size=80))
def test_it_equals_a_reference_implementation(ids: list[int]) -> None:
    assert is_repeating(ids) == reference(ids)


def test_a_phrase_above_the_maximum_length_is_not_a_loop() -> None:
    assert not is_repeating(list(range(MAX_PHRASE_TOKENS + 1)) * 5)


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
def test_real_captions_are_classified(text: str, looping: bool) -> None:
    words = text.split()
    assert is_repeating([words.index(word) for word in words]) == looping
