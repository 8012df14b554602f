"""Rewards for self-critical training: a caption that is right, in words that people use; F1 for tags.

What a reader minds most weighs most: a wrong subject, a wrong color, a doubled word. CIDEr keeps the caption from
saying too little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import caption_metrics
from training.caption_metrics import lower_words
from training.dataset import Photo, references
from training.phrasing import Phrasing

WEIGHTS = {
    "acceptable": 0.8,
    "subject": 0.7,
    "kind": 0.7,
    "object precision": 0.5,
    "unsupported words": -0.25,  # each
    "invented person": -0.5,
    "invented animal": -0.5,
    "wrong color": -0.6,
    "wrong count": -0.8,
    "wrong gender": -0.6,
    "wrong article": -0.8,
    "doubled word": -0.7,
}
CIDER_WEIGHT = 0.3
UNKNOWN_PHRASE_WEIGHT = -0.25  # for each trigram that no training caption has


class Reward:
    """CIDEr with the document frequencies of all training captions, the metrics in WEIGHTS, and the phrasing."""

    def __init__(self, photos: list[Photo]) -> None:
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        self._scorer: Any = CiderScorer()
        for photo in photos:
            self._scorer += ("", [lower_words(text) for text in references(photo)])
        self._scorer.compute_doc_freq()
        self._documents = len(photos)
        self._phrasing = Phrasing(text for photo in photos for text in references(photo))

    def __call__(self, captions: Sequence[str], photos: Sequence[Photo]) -> NDArray[np.float64]:
        """Return the reward of each caption of the photo at the same index."""
        from pycocoevalcap.cider.cider_scorer import cook_refs, cook_test

        cooked = [cook_refs([lower_words(text) for text in references(photo)]) for photo in photos]
        self._scorer.crefs = _Corpus(cooked, self._documents)
        self._scorer.ctest = [cook_test(lower_words(caption)) for caption in captions]
        reward = CIDER_WEIGHT * np.asarray(self._scorer.compute_cider())
        reward = reward + UNKNOWN_PHRASE_WEIGHT * np.array([self._phrasing.unknown(caption) for caption in captions])
        for name, weight in WEIGHTS.items():
            metric = caption_metrics.PER_PHOTO[name]
            values = np.array([metric(c, references(p)) for c, p in zip(captions, photos, strict=True)])
            reward = reward + weight * np.nan_to_num(values)
        return reward


def tag_reward(text: str, references: Sequence[str]) -> float:
    """Return the F1 of the tags against the things that references name, less the share of repeated tags."""
    tags = [tag.strip() for tag in text.split(",")]
    named = {thing for tag in tags for thing in caption_metrics.things(tag)}
    expected = {thing for reference in references for thing in caption_metrics.things(reference)}
    repeated = 1 - len(set(tags)) / len(tags)
    return 2 * len(named & expected) / max(len(named) + len(expected), 1) - repeated


class _Corpus(list):  # type: ignore[type-arg]
    """The references of one batch with the length of the whole corpus: the scorer takes its document count from it."""

    def __init__(self, values: Sequence[Any], documents: int) -> None:
        super().__init__(values)
        self._documents = documents

    def __len__(self) -> int:
        return self._documents
