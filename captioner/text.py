"""Token ids to text, as they come."""

from __future__ import annotations

from tokenizers import Tokenizer

_INCOMPLETE = "�"  # what a byte-level tokenizer shows for the first bytes of a character


class TextStream:
    """Grows with each id; `text` never ends inside a character and never changes what it has said."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int]) -> None:
        """`ids` stand before the caption and are part of it, as the words of a prompt that it continues."""
        self._tokenizer = tokenizer
        self._ids = list(ids)
        self._said = 0

    def push(self, ids: list[int], final: bool = False) -> str:
        """The text that `ids` add; with `final` also what was held back."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()
        if not final and text.endswith(_INCOMPLETE):
            return ""
        new = text[self._said :]
        self._said = len(text)
        return new
