"""Find a clause that says again, word for word, what a caption has said: "It is by a wall, and it is by a wall."

It knows text only. The engine's repetition guard looks for phrases that come three times in a row; a small model also
repeats a clause once, with other words between.
"""

from __future__ import annotations

import re
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
    for gap in _BEFORE.finditer(text, max(start, judged - _MAX_GAP)):
        kept, after_sentence = gap.end("end") if gap["end"] else gap.start(), bool(gap["end"])
        if kept < judged:
            continue
        after = _AFTER.search(text, gap.end())
        is_complete = after is not None or final
        clause = _WORD.findall(text[gap.end() : after.start() if after else len(text)].casefold())
        said = " " + " ".join(_WORD.findall(text[: gap.start()].casefold())) + " "
        if is_complete:
            if len(clause) >= MIN_WORDS and f" {' '.join(clause)} " in said:
                return Found(kept, True, after_sentence)
        elif f" {' '.join(clause)}" in said or any(each.startswith(" ".join(clause)) for each in _CONJUNCTIONS):
            return Found(kept, False, after_sentence)
    if final:
        return None
    tail = _OPEN.search(text, max(start, judged))
    word = text[tail.start() :].strip().casefold() if tail else ""
    if tail and (not word[:1].isalnum() or any(each.startswith(word) for each in _CONJUNCTIONS)):
        ends_sentence = text[tail.start() : tail.start() + 1] in (".", "!", "?")
        return None if ends_sentence else Found(tail.start(), False, False)
    return None
