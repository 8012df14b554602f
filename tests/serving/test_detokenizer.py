"""Token ids to text as they come, with a real byte-level tokenizer and small ones of other kinds."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from captioner.serving.detokenizer import Detokenizer, stop_met, too_long
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


OTHERS = {"WordPiece": word_piece(), "byte fallback": byte_fallback()}
STOPS = st.lists(st.text("ab .,", min_size=1, max_size=4), max_size=3).map(tuple)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENS.encode(text, add_special_tokens=False).ids
    return ids


def decode(ids: list[int]) -> str:
    text: str = TOKENS.decode(ids, skip_special_tokens=True)
    return text.lstrip()


def pieces(before: list[int], groups: list[list[int]]) -> list[str]:
    """What is said for each group of ids, and at the end."""
    stream = Detokenizer(TOKENS, before)
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


@pytest.mark.parametrize("kind", OTHERS)
@given(data=st.data())
def test_other_tokenizers_never_take_back_what_was_said(kind: str, data: st.DataObject) -> None:
    tokens = OTHERS[kind]
    groups = data.draw(st.lists(st.lists(st.integers(0, tokens.get_vocab_size() - 1), max_size=3), max_size=12))
    stream = Detokenizer(tokens, [])
    said = [*(stream.push(group) for group in groups), stream.push([], final=True)]
    assert "".join(said) == tokens.decode([token for group in groups for token in group]).lstrip()


def test_word_piece_text_is_said_at_once() -> None:
    tokens = word_piece()
    stream = Detokenizer(tokens, [])
    vocabulary = tokens.get_vocab()
    assert [stream.push([vocabulary[word]]) for word in ["do", "n't", "cat", "##s", "."]] == [
        "do",
        "n't",
        " cat",
        "s",
        ".",
    ]


@example("", "aa,a", (",", "a,a"), [3])
@given(st.text("ab ", max_size=3), st.text("ab .,é猫", max_size=30), STOPS, st.lists(st.integers(1, 5), max_size=30))
def test_text_ends_before_the_stop_string_that_is_whole_first_however_ids_are_grouped(
    prompt: str, text: str, stop: tuple[str, ...], sizes: list[int]
) -> None:
    ids, start = encode(text), len(prompt.lstrip())
    groups = [ids[sum(sizes[:at]) : sum(sizes[: at + 1])] for at in range(len(sizes))] + [ids[sum(sizes) :]]
    stream = Detokenizer(TOKENS, encode(prompt), stop)
    said = "".join([*(stream.push(group) for group in groups), stream.push([], final=True)])
    whole = (prompt + text).lstrip()
    found = [(at + len(one), at) for one in stop if (at := whole.find(one, start)) >= 0]
    assert said == whole[: min(found, default=(0, len(whole)))[1]]
    assert stream.stopped == bool(found)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_clear() -> None:
    stream = Detokenizer(TOKENS, [], ("a dog",))
    assert [stream.push(encode(text)) for text in ["a cat and a", " d", "eer, a do"]] == ["a cat and ", "", "a deer, "]
    assert not stream.stopped
    assert [stream.push(encode("g in")), stream.push(encode("the fog"), final=True)] == ["", ""]
    assert stream.stopped


def test_what_might_have_begun_a_stop_string_is_said_at_the_end() -> None:
    stream = Detokenizer(TOKENS, [], ("a dog",))
    assert [stream.push(encode("a do")), stream.push([], final=True)] == ["", "a do"]
    assert not stream.stopped


@given(st.text("ab .,é猫", max_size=40), STOPS)
def test_the_token_that_completes_a_stop_string_is_told_from_the_others(text: str, stop: tuple[str, ...]) -> None:
    ids = encode(text)
    counts = range(1, len(ids) + 1)
    met = [count for count in counts if stop_met(TOKENS, ids[:count], stop)]
    expected = [count for count in counts if any(one in TOKENS.decode(ids[:count]) for one in stop)]
    assert met[:1] == expected[:1]


SENTENCES = st.lists(
    st.sampled_from(["a", "grey", "cat", ".", ", ", " ", "! ", "\n", "3.5", "sofa's", '"So."']), max_size=30
)


@given(SENTENCES.map("".join), st.integers(1, 40), st.data())
def test_a_text_within_its_characters_is_a_beginning_that_never_depends_on_how_tokens_came(
    text: str, limit: int, data: st.DataObject
) -> None:
    ids = encode(text)
    until = next((n for n in range(len(ids)) if too_long(TOKENS, ids[:n], limit)), len(ids))
    ids = ids[:until]  # the engine stops there
    whole = Detokenizer(TOKENS, [], max_characters=limit).push(ids, final=True)
    stream, said = Detokenizer(TOKENS, [], max_characters=limit), ""
    while ids:
        count = data.draw(st.integers(1, len(ids)))
        said += stream.push(ids[:count])
        assert len(said) <= limit
        ids = ids[count:]
    said += stream.push([], final=True)
    assert said == whole
    assert len(whole) <= limit
    assert text.lstrip().startswith(whole)


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("A grey cat. It lies on a sofa.", 30, "A grey cat. It lies on a sofa."),
        ("A grey cat. It lies on a sofa.", 29, "A grey cat."),
        ("A grey cat. It lies on a sofa.", 11, "A grey cat."),
        ("A grey cat. It lies on a sofa.", 10, "A grey cat"),
        ("A grey cat. It lies on a sofa.", 9, "A grey"),
        ("cat, sofa, window", 16, "cat, sofa"),
        ("It costs 3.5 dollars here", 20, "It costs 3.5 dollars"),
        ("Incomprehensibilities", 10, "Incomprehe"),
    ],
)
def test_a_limit_of_characters_ends_at_a_sentence_or_else_at_a_word(text: str, limit: int, kept: str) -> None:
    assert Detokenizer(TOKENS, [], max_characters=limit).push(encode(text), final=True) == kept
