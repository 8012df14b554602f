"""Token ids to text, as they come. Knows the tokenizer and where the text ends; not who listens."""

from __future__ import annotations

import re

from tokenizers import Tokenizer

_INCOMPLETE = "�"  # what a byte-level tokenizer shows for the first bytes of a character
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s)""")
_WORD_END = re.compile(r"[^\w\s]*\s+")  # with the comma that only a next word makes good
_BYTE = "<0x"  # how the byte tokens of byte fallback are written: <0x00> to <0xFF>


class Detokenizer:
    """Grows with each id; `text` never ends inside a character and never changes what it has said.

    That needs a tokenizer whose text of some ids begins the text of more ids, but for a character that is not whole
    yet. Byte-level BPE is one, and so is WordPiece: its clean-up of "a ." or "do n't" looks at one token at a time.
    With byte fallback, one bad byte spoils all bytes in a row, so these wait for the next token that is none.
    """

    def __init__(
        self, tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), max_characters: int | None = None
    ) -> None:
        """`ids` stand before the caption and are part of it, as the words of a prompt that it continues.

        The text ends before the `stop` string that is whole first after those words, however the ids are grouped.
        None may be empty. One longer than `max_characters` ends at the last sentence that fits; if the first does not,
        at the last word that does.
        """
        self._tokenizer = tokenizer
        self._ids = list(ids)
        self._stop = stop
        self._max_characters = max_characters
        self._said = 0
        self._stopped = False
        self._before = len(self._decode())

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing is said from then on."""
        return self._stopped

    def push(self, ids: list[int], final: bool = False) -> str:
        """The text that `ids` add; with `final` also what was held back, as it might have begun a stop string."""
        if self._stopped:
            return ""
        self._ids += ids
        text = self._decode()
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop, self._before)) >= 0]
        if found:
            self._stopped = True
            text = text[: min(found)[1]]
        elif not final:
            if text.endswith(_INCOMPLETE) or self._ends_in_byte():
                return ""
            text = text[: len(text) - self._held(text)]
        text = self._fitting(text, whole=final or self._stopped)
        new = text[self._said :]
        self._said = len(text)
        return new

    def _fitting(self, text: str, whole: bool) -> str:
        """`text` within the limit; if it is not `whole` yet, what of it stays however it goes on."""
        limit = self._max_characters
        if limit is None or (whole and len(text) <= limit):
            return text
        ends = [found.end() for found in _SENTENCE_END.finditer(text) if found.end() <= limit]
        ends = ends or [found.start() for found in _WORD_END.finditer(text) if 0 < found.start() <= limit]
        end = ends[-1] if ends else limit if len(text) > limit else 0
        return text[: max(end, self._said)]

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text.lstrip()

    def _ends_in_byte(self) -> bool:
        """Whether the last token is one byte of a tokenizer with byte fallback."""
        return bool(self._ids) and (self._tokenizer.id_to_token(self._ids[-1]) or "").startswith(_BYTE)

    def _held(self, text: str) -> int:
        """How many of the last characters could begin a stop string."""
        generated = text[self._before :]
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if generated.endswith(stop[:size])), default=0
        )


def stop_met(tokenizer: Tokenizer, token_ids: list[int], stop: tuple[str, ...]) -> bool:
    """Whether the last of the caption's ids brought one of the `stop` strings to its end, if asked after each id.

    Decodes only as many ids as the longest string can have: one a byte, and one for a token's space before it.
    """
    if not stop:
        return False
    tail = token_ids[-1 - max(len(text.encode()) for text in stop) :]
    text = tokenizer.decode(tail, skip_special_tokens=True)
    return any(found in text for found in stop)


def too_long(tokenizer: Tokenizer, echoed_prompt_ids: list[int], max_characters: int | None) -> bool:
    """Whether the text of these ids is over its limit of characters, if it has one."""
    return (
        max_characters is not None
        and len(tokenizer.decode(echoed_prompt_ids, skip_special_tokens=True).lstrip()) > max_characters
    )
