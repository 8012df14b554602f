"""Whether a caption is worded like the training captions: the share of its trigrams that one of them has."""

from __future__ import annotations

from collections.abc import Iterable

from training.caption_metrics import lower_words

END = "."


class Phrasing:
    """The word trigrams of a set of captions, their beginnings and ends included."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = {trigram for text in texts for trigram in _trigrams(text)}

    def unknown(self, text: str) -> float:
        """Return the share of the text's trigrams that no caption has."""
        trigrams = _trigrams(text)
        return sum(trigram not in self._known for trigram in trigrams) / len(trigrams)


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = [END, *lower_words(text).split(), END]
    return [tuple(words[start : start + 3]) for start in range(max(len(words) - 2, 1))]
