"""Token ids to text while they arrive, with a real byte-level tokenizer and small ones of other kinds."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from captioner.serving import repeated_clause
from captioner.serving.detokenizer import Detokenizer, _overlap
from captioner.wire import MAX_STOP_CHARACTERS
from tests.support import tiny

TOKENS = tiny.tokenizer()
IDS = st.integers(0, TOKENS.get_vocab_size() - 1)


def word_piece() -> Tokenizer:
    """BERT's kind, with everything that its decoder's clean-up looks at."""
    words = ["[UNK]", "a", "cat", "do", "n", "t", "s", "not", ".", ",", "!", "?", "'", "n't", "'s", "'ve", "'m", "é"]
    words += ["##s", "##.", "##'", "##n't"]
    made = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece(cleanup=True)
    return made


def byte_fallback() -> Tokenizer:
    """Llama's kind."""
    words = ["▁a", "▁", "s", "é", *(f"<0x{byte:02X}>" for byte in "é猫".encode())]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="s"))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


KINDS = {"byte level": TOKENS, "WordPiece": word_piece(), "byte fallback": byte_fallback()}
STOPS = st.lists(st.text("ab .,sé\ufffd", min_size=1, max_size=4), max_size=3).map(tuple)
LIMITS = st.none() | st.integers(1, 40)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENS.encode(text, add_special_tokens=False).ids
    return ids


def decode(ids: list[int]) -> str:
    text: str = TOKENS.decode(ids, skip_special_tokens=True)
    return text.lstrip()


def split(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Split `ids` into groups of these sizes; the last group is the rest."""
    starts = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def pieces(stream: Detokenizer, groups: list[list[int]]) -> list[str]:
    """Return the text of each group of ids, and of the end."""
    return [*(stream.push(group) for group in groups), stream.push([], final=True)]


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))  # a control token
def test_text_is_complete_when_its_tokens_come_one_by_one(text: str) -> None:
    written = pieces(Detokenizer(TOKENS, []), [[token] for token in encode(text)])
    assert "".join(written) == decode(encode(text)) == text.lstrip()


@given(st.lists(IDS, max_size=6), st.lists(st.lists(IDS, max_size=4), max_size=12))
def test_the_pieces_of_any_tokens_join_to_the_whole_decode(before: list[int], groups: list[list[int]]) -> None:
    ids = [*before, *(token for group in groups for token in group)]
    assert "".join(pieces(Detokenizer(TOKENS, before), groups)) == decode(ids)


@given(st.lists(st.lists(IDS, max_size=4), max_size=12))
def test_only_the_last_piece_may_end_inside_a_character(groups: list[list[int]]) -> None:
    assert not any(piece.endswith("\ufffd") for piece in pieces(Detokenizer(TOKENS, []), groups)[:-1])


@pytest.mark.parametrize("character", ["é", "猫", "😀", "👩‍🚀"])
def test_a_character_of_several_tokens_is_returned_once_it_is_complete(character: str) -> None:
    ids = encode(character)
    assert len(ids) > 1
    written = pieces(Detokenizer(TOKENS, []), [[token] for token in ids])
    assert "".join(written) == character
    assert "\ufffd" not in "".join(written)
    assert written[0] == ""


def test_an_incomplete_character_is_returned_at_the_end() -> None:
    assert pieces(Detokenizer(TOKENS, []), [encode("a cat 😀")[:-1]]) == ["", "a cat \ufffd"]


def test_invalid_bytes_do_not_hold_back_what_follows() -> None:
    broken = encode("😀")[:1]
    assert pieces(Detokenizer(TOKENS, []), [broken, encode("a"), encode("b")]) == ["", "\ufffda", "b", ""]


def test_the_words_of_a_prompt_are_part_of_the_caption_and_its_control_tokens_are_not() -> None:
    for prompt, text in (("a photo of", "a photo of a cat"), (tiny.SHORT, "a cat")):
        assert Detokenizer(TOKENS, encode(tiny.BOS + prompt)).push(encode(" a cat")) == text


@pytest.mark.parametrize("kind", ["WordPiece", "byte fallback"])
@given(data=st.data())
def test_text_of_other_tokenizers_is_never_changed_after_it_was_returned(kind: str, data: st.DataObject) -> None:
    tokens = KINDS[kind]
    groups = data.draw(st.lists(st.lists(st.integers(0, tokens.get_vocab_size() - 1), max_size=3), max_size=12))
    whole = tokens.decode([token for group in groups for token in group]).lstrip()
    assert "".join(pieces(Detokenizer(tokens, []), groups)) == whole


def test_word_piece_text_is_returned_immediately() -> None:
    tokens = word_piece()
    vocabulary, words = tokens.get_vocab(), ["do", "n't", "cat", "##s", "."]
    written = pieces(Detokenizer(tokens, []), [[vocabulary[word]] for word in words])
    assert written == ["do", "n't", " cat", "s", ".", ""]


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    stop=STOPS,
    limit=LIMITS,
    most=st.none() | st.integers(1, 40),
    sizes=st.lists(st.integers(0, 4), max_size=20),
)
def test_text_and_finish_reason_do_not_depend_on_how_ids_are_grouped(
    kind: str, data: st.DataObject, stop: tuple[str, ...], limit: int | None, most: int | None, sizes: list[int]
) -> None:
    tokens = KINDS[kind]
    ids = st.integers(0, tokens.get_vocab_size() - 1)
    prompt, written = data.draw(st.lists(ids, max_size=3)), data.draw(st.lists(ids, max_size=most or 40))
    outcomes = set()
    for groups in ([written], [[token] for token in written], split(written, sizes)):
        stream = Detokenizer(tokens, prompt, stop, limit, most)
        outcomes.add(("".join(pieces(stream, groups)), stream.finish_reason))
    assert len(outcomes) == 1, outcomes


@given(st.text("ab .,é猫", max_size=40), STOPS, LIMITS)
def test_a_detokenizer_that_is_asked_after_each_token_knows_the_end_of_the_sent_text(
    text: str, stop: tuple[str, ...], limit: int | None
) -> None:
    decoding, ids = Detokenizer(TOKENS, [], stop, limit), encode(text)
    count = next((count for count in range(1, len(ids) + 1) if decoding.is_stop(ids[:count])), len(ids))
    decoding.push([], final=True)
    sent, whole = (Detokenizer(TOKENS, [], stop, limit) for _ in range(2))
    assert sent.push(ids[:count], final=True) == whole.push(ids, final=True)
    assert sent.finish_reason == whole.finish_reason == decoding.finish_reason


@example("", "aa,a", (",", "a,a"), [3])
@given(st.text("ab ", max_size=3), st.text("ab .,é猫", max_size=30), STOPS, st.lists(st.integers(1, 5), max_size=30))
def test_text_ends_before_the_stop_text_that_is_complete_first(
    prompt: str, text: str, stop: tuple[str, ...], sizes: list[int]
) -> None:
    stream = Detokenizer(TOKENS, encode(prompt), stop)
    written = "".join(pieces(stream, split(encode(text), sizes)))
    whole, start = (prompt + text).lstrip(), len(prompt.lstrip())
    found = [(at + len(one), at) for one in stop if (at := whole.find(one, start)) >= 0]
    assert written == whole[: min(found, default=(0, len(whole)))[1]]
    assert stream.finish_reason == ("stop" if found else None)


@given(st.text("ab .,é猫", max_size=40), STOPS)
def test_the_token_that_completes_a_stop_text_ends_the_caption(text: str, stop: tuple[str, ...]) -> None:
    ids, stream = encode(text), Detokenizer(TOKENS, [], stop)
    counts = range(1, len(ids) + 1)
    expected = (n for n in counts if any(one in (now := decode(ids[:n])) for one in stop) and now[-1] != "\ufffd")
    assert next((n for n in counts if stream.is_stop(ids[:n])), None) == next(expected, None)


def test_the_beginning_of_a_stop_text_is_held_back_until_the_next_token_decides() -> None:
    stream = Detokenizer(TOKENS, [], ("a dog",))
    assert [stream.push(encode(text)) for text in ["a cat and a", " d", "eer, a do"]] == ["a cat and ", "", "a deer, "]
    assert stream.finish_reason is None
    assert [stream.push(encode("g in")), stream.push(encode("the fog"), final=True)] == ["", ""]
    assert stream.finish_reason == "stop"


def test_an_unfinished_stop_text_is_returned_at_the_end() -> None:
    stream = Detokenizer(TOKENS, [], ("a dog",))
    assert pieces(stream, [encode("a do")]) == ["", "a do"]
    assert stream.finish_reason is None


SENTENCES = st.lists(
    st.sampled_from(["a", "grey", "cat", ".", ", ", " ", "! ", "\n", "3.5", "sofa's", '"So."']), max_size=30
)


@given(SENTENCES.map("".join), st.integers(1, 40), st.lists(st.integers(0, 4), max_size=30))
def test_a_text_with_a_limit_is_a_prefix_that_never_exceeds_it(text: str, limit: int, sizes: list[int]) -> None:
    stream = Detokenizer(TOKENS, [], max_characters=limit)
    written = "".join(pieces(stream, split(encode(text), sizes)))
    assert len(written) <= limit and text.lstrip().startswith(written)
    is_longer = len(text.lstrip()) > limit
    assert stream.finish_reason == ("length" if is_longer else None)
    assert is_longer or written == text.lstrip()


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("A grey cat. It lies on a sofa.", 30, "A grey cat. It lies on a sofa."),
        ("A grey cat. It lies on a sofa.", 29, "A grey cat."),
        ("A grey cat. It lies on a sofa.", 11, "A grey cat."),
        ("A grey cat. It lies on a sofa.", 10, "A grey"),
        ("A grey cat. It lies on a sofa.", 9, "A grey"),
        ("cat, sofa, window", 16, "cat, sofa"),
        ("It costs 3.5 dollars here", 20, "It costs 3.5 dollars"),
        ("It costs 3.5 dollars here", 10, "It costs"),
        ("Incomprehensibilities", 10, "Incomprehe"),
    ],
)
def test_a_limit_of_characters_ends_the_text_at_a_sentence_or_else_at_a_word(text: str, limit: int, kept: str) -> None:
    assert Detokenizer(TOKENS, [], max_characters=limit).push(encode(text), final=True) == kept


@pytest.mark.parametrize("limit", range(10, 70))
def test_a_limit_of_characters_never_ends_the_text_on_a_word_that_needs_another(limit: int) -> None:
    text = "A smiling man in a red and white jacket sits in front of a tall lamp with the cat on it and a dog"
    written = Detokenizer(TOKENS, [], max_characters=limit).push(encode(text), final=True)
    assert text.startswith(written) and len(written) <= limit
    assert written.split()[-1] not in ("a", "the", "and", "in", "of", "with", "on")


WORDS = st.lists(
    st.sampled_from([" a", " the", " of", " cat", " with", " wit", "h", "in", ".", ",", "!", " an", "d", " é", "😀"]),
    max_size=40,
)


@given(WORDS.map("".join), st.integers(1, 60), st.lists(st.integers(0, 4), max_size=60))
def test_the_last_token_never_ends_the_text_on_a_word_that_needs_another_and_nothing_is_taken_back(
    text: str, most: int, sizes: list[int]
) -> None:
    ids = encode(text)[:most]
    written = pieces(Detokenizer(TOKENS, [], max_tokens=most), split(ids, sizes))
    whole, kept = decode(ids), "".join(written)
    assert whole.startswith(kept)
    if len(ids) < most:
        assert kept == whole
    elif kept != whole:
        assert kept.rpartition(" ")[2] not in ("a", "the", "of", "with", "in", "an", "and") or len(ids) > 8


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (" A cat sits on a", "A cat sits"),
        (" A cat sits. The", "A cat sits."),
        (" A cat sits, and", "A cat sits"),
        (" A cat in the.", "A cat in the."),
        (" A cat sits", "A cat sits"),
        (" A", "A"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_caption_of_max_tokens_ends_on_a_word_that_needs_no_other(text: str, kept: str, alone: bool) -> None:
    ids = encode(text)
    groups = [[token] for token in ids] if alone else [ids]
    assert "".join(pieces(Detokenizer(TOKENS, [], max_tokens=len(ids)), groups)) == kept
    assert "".join(pieces(Detokenizer(TOKENS, [], max_tokens=len(ids) + 1), groups)) == text.lstrip()


@pytest.mark.parametrize(
    ("stop", "limit", "text", "reason"),
    [
        ("fog", 15, "a dog in the ", "stop"),
        ("fog", 14, "a dog", "length"),
        (" in the fog", 8, "a dog", "length"),
    ],
)
def test_the_earlier_of_stop_text_and_limit_ends_the_text(stop: str, limit: int, text: str, reason: str) -> None:
    stream = Detokenizer(TOKENS, [], (stop,), limit)
    assert (stream.push(encode("a dog in the fog, a cat"), final=True), stream.finish_reason) == (text, reason)


def test_the_longest_stop_texts_cost_less_than_a_millisecond_a_token() -> None:
    ids = TOKENS.encode("a" * 400).ids
    stops = tuple("a" * (MAX_STOP_CHARACTERS - 1) + end for end in "bcde")
    fastest = math.inf
    for _ in range(5):
        text = Detokenizer(TOKENS, [], stops)
        began = time.perf_counter()
        for token in ids:
            text.push([token])
        fastest = min(fastest, time.perf_counter() - began)
    assert fastest / len(ids) < 0.001


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=6))
def test_text_is_held_back_exactly_while_it_may_begin_a_stop_text(text: str, stop: str) -> None:
    expected = max((size for size in range(len(stop)) if text.endswith(stop[:size])), default=0)
    assert _overlap(text, stop) == expected


CLAUSES = st.lists(
    st.sampled_from(
        [
            "the cat sits on it",
            "The cat sits",
            "a man in a hat",
            " and ",
            ", ",
            ", and ",
            ". ",
            ".",
            "! ",
            " an",
            " the wall",
        ]
    ),
    max_size=14,
).map("".join)


@settings(deadline=None)
@given(CLAUSES, st.lists(st.integers(0, 9), max_size=60), LIMITS, st.none() | st.integers(1, 120))
def test_no_clause_comes_twice_and_nothing_that_was_sent_is_taken_back(
    text: str, sizes: list[int], limit: int | None, most: int | None
) -> None:
    ids, outcomes = encode(text)[:most], set()
    for groups in ([ids], [[token] for token in ids], split(ids, sizes)):
        stream = Detokenizer(TOKENS, [], (), limit, most, True)
        outcomes.add(("".join(pieces(stream, groups)), stream.finish_reason))
    assert len(outcomes) == 1, outcomes
    ((written, reason),) = outcomes
    if limit is None and most is None:
        assert reason == ("repetition" if written != decode(ids) else None)
        clauses = [clause.casefold().split() for clause in re.split(r"[,.!]\s+(?:and )?| and ", written.rstrip(".!"))]
        long = [" ".join(clause) for clause in clauses if len(clause) >= 4]
        assert len(set(long)) == len(long)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "The wall is blurred in front of it, and the wall is blurred. It is red.",
            "The wall is blurred in front of it.",
        ),
        ("A cat sits on a mat. A cat sits on a mat.", "A cat sits on a mat."),
        ("A cat sits on a mat and a cat sits on a mat", "A cat sits on a mat."),
        ("A man in a red hat, a man in a blue hat", "A man in a red hat, a man in a blue hat"),
        ("cat, wall, cat, grey wall, cat", "cat, wall, cat, grey wall, cat"),
        ("A cat. A cat sits on a mat. A cat", "A cat. A cat sits on a mat. A cat"),
    ],
)
def test_a_caption_ends_before_a_clause_that_it_has_said_before(text: str, kept: str) -> None:
    stream = Detokenizer(TOKENS, [], repetition_guard=True)
    assert "".join(pieces(stream, [[token] for token in encode(text)])) == kept
    assert Detokenizer(TOKENS, []).push(encode(text), final=True) == text


def test_a_clause_is_held_back_only_while_it_may_repeat() -> None:
    stream = Detokenizer(TOKENS, [], repetition_guard=True)
    parts = ["A cat sits on a mat", ",", " and", " a", " cat", " sleeps", " there"]
    assert [stream.push(encode(part)) for part in parts][1:] == ["", "", "", "", ", and a cat sleeps", " there"]


def test_the_time_to_find_a_repeated_clause_grows_with_the_text_not_with_its_square() -> None:
    text = ", ".join(f"word{number}" for number in range(16_000))
    began = time.perf_counter()
    assert repeated_clause.find(text, 0, 0, True) is None
    assert time.perf_counter() - began < 2, "0.05 s; with a search of the whole text for each clause, 25 s"
