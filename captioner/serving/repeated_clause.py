"""Find a clause that says again, word for word, what a caption has said: "It is by a wall, and it is by a wall."

It knows text only. The engine's repetition guard looks for phrases that come three times in a row; a small model also
repeats a clause once, with other words between.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

MIN_WORDS = 4  # of a clause
_MAX_GAP = 8  # characters of punctuation that may have been judged before its clause is
_CONJUNCTIONS = ("and", "but", "while")
_WORD = re.compile(r"[\w'\u2019-]+")
_BEFORE = re.compile(
    r"""(?:[,;]|(?P<end>[.!?]["')\]]{0,4}))(?:\s+(?:and|but|while)(?=\s)|(?=\s))|\s+(?:and|but|while)(?=\s)""",
    re.IGNORECASE,
)
_AFTER = re.compile(r"""[,;.!?]["')\]]*\s|\s+(?:and|but|while)\s""", re.IGNORECASE)
_OPEN = re.compile(r"""(?:[,;.!?]["')\]]*)?\s*\Z|\s+\w*\Z""")  # the text may go on with what begins a clause


class Found(NamedTuple):
    """`kept` characters come before a repeated clause, or before one that may become one if `repeats` is False."""

    kept: int
    repeats: bool
    after_sentence: bool  # whether a sentence ends where the clause begins


def find(text: str, start: int, judged: int, final: bool) -> Found | None:
    """Return the first clause after `start` characters that is repeated, or may be; None if there is no such clause.

    Clauses before `judged` characters are known not to repeat.

    With `final` the text is complete. Otherwise, what is said of `text` holds for every longer text: before `kept`,
    nothing is repeated, and a clause that repeats stays one.
    """
    words = _Words(text)
    for gap in _BEFORE.finditer(text, max(start, judged - _MAX_GAP)):
        kept, after_sentence = gap.end("end") if gap["end"] else gap.start(), bool(gap["end"])
        if kept < judged:
            continue
        after = _AFTER.search(text, gap.end())
        clause, count = words.between(gap.end(), after.start() if after else len(text))
        if after is not None or final:
            if count >= MIN_WORDS and words.said_before(gap.start(), f"{clause} "):
                return Found(kept, True, after_sentence)
        elif words.said_before(gap.start(), clause) or any(f" {each}".startswith(clause) for each in _CONJUNCTIONS):
            return Found(kept, False, after_sentence)
    if final:
        return None
    tail = _OPEN.search(text, max(start, judged))
    word = text[tail.start() :].strip().casefold() if tail else ""
    if tail and (not word[:1].isalnum() or any(each.startswith(word) for each in _CONJUNCTIONS)):
        ends_sentence = text[tail.start() : tail.start() + 1] in (".", "!", "?")
        return None if ends_sentence else Found(tail.start(), False, False)
    return None


class _Words:
    """The words of a text in lower case, each after one blank. A search costs no more than one pass over them."""

    def __init__(self, text: str) -> None:
        found = list(_WORD.finditer(text))
        self._starts = [word.start() for word in found]
        words = [f" {word[0].casefold()}" for word in found]
        self._joined = "".join(words) + " "
        self._offsets = [0, *accumulate(map(len, words))]

    def between(self, start: int, end: int) -> tuple[str, int]:
        """Return the words that begin between two characters of the text, and their number."""
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        return self._joined[self._offsets[first] : self._offsets[last]], last - first

    def said_before(self, end: int, words: str) -> bool:
        """Return whether words come before a character of the text."""
        return self._joined.find(words, 0, self._offsets[bisect_left(self._starts, end)] + 1) >= 0
