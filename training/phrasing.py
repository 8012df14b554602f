"""Whether a caption is worded like the training captions: how many of its trigrams no training caption has."""

from __future__ import annotations

from collections.abc import Iterable

from training.caption_metrics import lower_words

END = "."


class Phrasing:
    """The word trigrams of a set of captions, their beginnings and ends included."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = {trigram for text in texts for trigram in _trigrams(text)}

    def unknown(self, text: str) -> int:
        """Return how many of the text's trigrams no caption has."""
        return sum(trigram not in self._known for trigram in _trigrams(text))


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = [END, *lower_words(text).split(), END]
    return [tuple(words[start : start + 3]) for start in range(max(len(words) - 2, 1))]
