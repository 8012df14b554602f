"""Find the nouns (in the singular, by the word list `nouns.txt`) and colors of a text; swap one noun for another."""

from __future__ import annotations

import re
from functools import cache
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
COLORS = {
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray", "greyish", "grayish", "silver", "silvery"),
    "red": ("red", "reddish", "maroon", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellowish"),
    "gold": ("gold", "golden"),
    "green": ("green", "greenish", "olive"),
    "turquoise": ("turquoise", "teal"),
    "blue": ("blue", "bluish", "navy"),
    "purple": ("purple", "violet", "lilac"),
    "pink": ("pink", "pinkish"),
    "brown": ("brown", "brownish", "chestnut"),
    "beige": ("beige", "tan", "cream", "creamy"),
}
COLOR_OF = {word: color for color, words in COLORS.items() for word in words}
WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")


@cache
def singular(word: str) -> str | None:
    """Return the singular of a lower-case noun of the list, or None for any other word."""
    if word in IRREGULAR:
        return IRREGULAR[word] if IRREGULAR[word] in NOUNS else None
    for plural_ending, ending in (("", ""), ("ies", "y"), ("es", ""), ("s", "")):
        stem = word.removesuffix(plural_ending) + ending
        if word.endswith(plural_ending) and stem in NOUNS:
            return stem
    return None


def nouns(text: str) -> list[str]:
    """Return the nouns of `text`, each once, in order of appearance."""
    found = (singular(word) for word in WORD.findall(text.lower()))
    return list(dict.fromkeys(word for word in found if word is not None))


def colors(text: str) -> list[str]:
    """Return the colors of `text`, each once, in order of appearance; shades have one name, "blue-green" is two."""
    found = (COLOR_OF.get(word) for word in re.findall("[a-z]+", text.lower()))
    return list(dict.fromkeys(color for color in found if color is not None))


def swap_noun(text: str, old: str, new: str) -> str:
    """Return `text` with the noun `new` in place of `old`; plurals stay plurals, and "a" or "an" is adapted."""

    def swap(match: re.Match[str]) -> str:
        word = match[0].lower()
        if singular(word) != old:
            return match[0]
        other = new if word == old or new.endswith("s") else f"{new}s"
        return other[:1].upper() + other[1:] if match[0][0].isupper() else other

    swapped = re.sub(r"[A-Za-z]+(?:-[a-z]+)?", swap, text)
    return re.sub(
        r"\b([Aa])n? (?=(\w))", lambda match: match[1] + ("n " if match[2].lower() in "aeiou" else " "), swapped
    )
