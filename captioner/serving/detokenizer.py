"""Token ids to text, and the only rule for where a caption's text ends. It knows the tokenizer, not the client."""

from __future__ import annotations

import re
from typing import Literal, Protocol

from captioner.serving import repeated_clause

_INCOMPLETE = "�"  # a byte-level tokenizer shows this for the first bytes of a character
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s)""")
_WORD_END = re.compile(r"(\w*)[^\w\s]*\s+")  # a comma is kept only before a next word
_FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "or", "but", "nor", "of", "in", "on", "at", "by", "to", "for", "from", "with", "into",
    "onto", "near", "as", "that", "which", "whose", "is", "are", "its", "his", "her", "their", "while", "behind",
    "beside", "between", "under", "over",
))  # fmt: skip
_LONGEST = 40  # characters of a function word and of punctuation after it
_LAST_WORD = re.compile(r"(\w+)[^\w.!?]*\Z")
_HELD_TOKENS = 8  # before max_tokens: the end of the caption among them may still be left out
_BYTE_TOKEN = "<0x"  # byte fallback spells its byte tokens <0x00> to <0xFF>


class TextDecoder(Protocol):
    """A tokenizers.Tokenizer, or what decodes ids in its place."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids."""

    def id_to_token(self, token: int, /) -> str | None:
        """Return the token of an id."""


class Detokenizer:
    """The text of one caption while its ids arrive. It never ends inside a character, and text once returned stays.

    Text and `finish_reason` depend on the ids only, not on how they are grouped into calls of `push`. Two instances of
    the same request therefore agree: the decode thread asks one after each token, the sender's thread reads the other.

    Requires prefix stability: decode(ids[:n]) is a prefix of decode(ids[:n+1]), except for an incomplete character.
    Byte-level BPE has it, and so has WordPiece, whose clean-up of "a ." or "do n't" looks at one token at a time. With
    byte fallback, one invalid byte changes the text of all adjacent byte tokens, so byte tokens wait for the next
    ordinary token.
    """

    def __init__(
        self,
        tokenizer: TextDecoder,
        ids: list[int],
        stop: tuple[str, ...] = (),
        max_characters: int | None = None,
        max_tokens: int | None = None,
        repetition_guard: bool = False,
    ) -> None:
        """`ids` precede the generated ones and are part of the text, as the words of a prompt that is continued.

        The text ends before the first complete `stop` text, searched after `ids`; no stop text may be empty. A text
        longer than `max_characters` ends at the last sentence that fits, or else at the last word that fits. Neither
        that limit nor `max_tokens`, after which the engine ends the caption, lets it end on words like "a" or "of".
        With `repetition_guard`, it ends before a clause that it has said before.
        """
        self.finish_reason: Literal["stop", "length", "repetition"] | None = None  # set once the text has ended
        self._tokenizer = tokenizer
        self._ids = list(ids)
        self._stop = stop
        self._max_characters = max_characters
        self._repetition_guard = repetition_guard
        # From `held` ids on, a last word waits for the next one; at `most` ids the engine ends the caption.
        self._most = None if max_tokens is None else len(ids) + max_tokens
        self._held = None if self._most is None else max(len(ids), self._most - _HELD_TOKENS)
        self._returned = 0  # characters
        self._start = len(self._decode())  # of the generated text

    def push(self, ids: list[int], final: bool = False) -> str:
        """Return the text that `ids` add; with `final`, also the text held back because it might begin a stop text.

        Returns "" for everything after the end of the text.
        """
        if self.finish_reason is not None:
            return ""
        self._ids += ids
        text = self._decode()
        if not final and (text.endswith(_INCOMPLETE) or self._ends_in_byte_token()):
            return ""
        if self._repetition_guard:
            text = self._before_repetition(text, final)
        text = self._until_end(text)
        if self.finish_reason is None:
            text = self._until_last_token(text, final)
        if self.finish_reason is None and not final:
            text = self._settled(text)
        new = text[self._returned :]
        self._returned += len(new)
        return new

    def is_stop(self, token_ids: list[int]) -> bool:
        """Push the last of the generated `token_ids`; return whether the text has ended. The engine asks after each."""
        self.push(token_ids[-1:])
        return self.finish_reason is not None

    def _until_end(self, text: str) -> str:
        """Return `text` up to its end and set `finish_reason`; whichever of stop text and limit comes first decides."""
        limit = self._max_characters
        if limit is not None:
            text = text[: limit + 1]  # what follows must not change the cut
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop, self._start)) >= 0]
        if found:
            self.finish_reason = "stop"
            return text[: min(found)[1]]
        if limit is not None and len(text) > limit:
            self.finish_reason = "length"
            return text[: self._fitting(text, limit) or limit]
        return text

    def _settled(self, text: str) -> str:
        """Return the beginning of `text` that stays, whatever ids follow."""
        generated = text[self._start :]
        text = text[: len(text) - max((_overlap(generated, stop) for stop in self._stop), default=0)]
        return text if self._max_characters is None else text[: self._fitting(text, self._max_characters)]

    def _before_repetition(self, text: str, final: bool) -> str:
        """Return `text` without a clause that is repeated, or may turn out to be. Returned text was judged before."""
        clause = repeated_clause.find(text, self._start, self._returned, final)
        if clause is None:
            return text
        if not clause.repeats:
            return text[: clause.kept]
        self.finish_reason = "repetition"
        return text[: clause.kept] + ("" if clause.after_sentence else ".")

    def _until_last_token(self, text: str, final: bool) -> str:
        """Return what of `text` stays if the engine ends the caption after `max_tokens` tokens."""
        if self._held is None or len(self._ids) <= self._held:
            return text
        if final and (len(self._ids) != self._most or not _is_function_word(text)):
            return text
        released = len(self._decode(self._held).rstrip(_INCOMPLETE))
        end = max([*_sentence_ends(text), *_word_ends(text), released, self._start])
        return text if final and end <= self._start else text[:end]

    def _fitting(self, text: str, limit: int) -> int:
        """Return the end of the last sentence within `limit` characters, or else of the last word, or else 0."""
        ends = [end for end in _sentence_ends(text) if end <= limit]
        ends = ends or [end for end in _word_ends(text) if end <= limit]
        return ends[-1] if ends else 0

    def _decode(self, count: int | None = None) -> str:
        text: str = self._tokenizer.decode(self._ids[:count], skip_special_tokens=True)
        return text.lstrip()

    def _ends_in_byte_token(self) -> bool:
        return bool(self._ids) and (self._tokenizer.id_to_token(self._ids[-1]) or "").startswith(_BYTE_TOKEN)


def _sentence_ends(text: str) -> list[int]:
    """Return where sentences end, before the blank that follows."""
    return [found.end() for found in _SENTENCE_END.finditer(text)]


def _word_ends(text: str) -> list[int]:
    """Return where words end that a caption may end on; the last word may go on, and has no end yet."""
    found = (word for word in _WORD_END.finditer(text) if word[1].lower() not in _FUNCTION_WORDS)
    return [word.end(1) for word in found if word.end(1) > 0]


def _is_function_word(text: str) -> bool:
    """Return whether the last word of `text` needs another one after it, and no sentence ends there."""
    last = _LAST_WORD.search(text[-_LONGEST:])
    return last is not None and last[1].lower() in _FUNCTION_WORDS


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` could be the beginning of `stop`."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
