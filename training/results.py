"""The results of evaluating one split, as the model card and the contact sheet show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captioner.embedded import Form
from training import caption_metrics
from training.dataset import Photo, Split, references
from training.generate import GeneratedCaption

Table = dict[tuple[str, str], dict[str, tuple[float, float, float]]]  # (set, form) → metric → mean, low, high


@dataclass(frozen=True)
class Results:
    """All metrics of one split. Lists have one entry per photo."""

    split: Split
    photos: list[Photo]
    train_photos: list[Photo]
    loss: float  # nats per token
    captions: dict[Form, list[GeneratedCaption]]
    table: Table
    words: dict[Form, float]  # per caption; for tags, the number of tags
    confidence: NDArray[np.float64]  # of the captions of the default form
    correct: NDArray[np.float64]  # whether such a caption names the main subject: 1, 0 or NaN


def tag_overlap(results: Results) -> tuple[float, float]:
    """Return precision and recall of the tags against the things that a photo's captions name."""
    pairs = [
        (
            set(caption_metrics.things(generated.text)),
            {thing for text in references(photo) for thing in caption_metrics.things(text)},
        )
        for generated, photo in zip(results.captions["tags"], results.photos, strict=True)
    ]
    scored = [(found, expected) for found, expected in pairs if found and expected]
    return (
        float(np.mean([len(found & expected) / len(found) for found, expected in scored])),
        float(np.mean([len(found & expected) / len(expected) for found, expected in scored])),
    )
