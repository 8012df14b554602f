"""Which things a text names: nouns in the singular, from a list (`nouns.txt`)."""

from __future__ import annotations

import re
from pathlib import Path

NOUNS = frozenset((Path(__file__).parent / "nouns.txt").read_text().split())
IRREGULAR = {
    "calves": "calf",
    "cattle": "cow",
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "shelves": "shelf",
    "wolves": "wolf",
    "women": "woman",
}
WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")


def noun(word: str, known: frozenset[str] = NOUNS) -> str | None:
    """The singular of a lower-case word that is a noun of the list, None for another word."""
    if word in IRREGULAR:
        return IRREGULAR[word] if IRREGULAR[word] in known else None
    for ending, singular in (("", ""), ("ies", "y"), ("es", ""), ("s", "")):
        stem = word.removesuffix(ending) + singular
        if word.endswith(ending) and stem in known:
            return stem
    return None


def nouns(text: str) -> list[str]:
    """The things that `text` names, each once, in its order."""
    found = (noun(word) for word in WORD.findall(text.lower()))
    return list(dict.fromkeys(word for word in found if word is not None))


def exchange(text: str, old: str, new: str) -> str:
    """`text` with another thing in the place of one: plurals stay plurals, "a" and "an" follow."""

    def put(match: re.Match[str]) -> str:
        word = match[0].lower()
        if noun(word) != old:
            return match[0]
        other = new if word == old or new.endswith("s") else f"{new}s"
        return other[:1].upper() + other[1:] if match[0][0].isupper() else other

    changed = re.sub(r"[A-Za-z]+(?:-[a-z]+)?", put, text)
    return re.sub(
        r"\b([Aa])n? (?=(\w))", lambda match: match[1] + ("n " if match[2].lower() in "aeiou" else " "), changed
    )
