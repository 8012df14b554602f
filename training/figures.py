"""The figures measured on one split: what the model card and the contact sheet show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captioner.embedded import Form
from training import caption_metrics
from training.dataset import Photo, Split, texts
from training.generate import Written

Table = dict[tuple[str, str], dict[str, tuple[float, float, float]]]  # (set, form) → score → mean, low, high


@dataclass(frozen=True)
class Figures:
    """All that is measured on one split."""

    split: Split
    photos: list[Photo]
    known: list[Photo]  # that it was trained with
    loss: float  # nats a token
    captions: dict[Form, list[Written]]
    table: Table
    words: dict[Form, float]  # a caption, of tags: tags
    confidence: NDArray[np.float64]  # of the medium captions
    right: NDArray[np.float64]


def tag_overlap(figures: Figures) -> tuple[float, float]:
    """Precision and recall of the tags against the things that a photo's captions name."""
    pairs = [
        (
            set(caption_metrics.things(written.text)),
            {thing for text in texts(photo) for thing in caption_metrics.things(text)},
        )
        for written, photo in zip(figures.captions["tags"], figures.photos, strict=True)
    ]
    known = [(found, real) for found, real in pairs if found and real]
    return (
        float(np.mean([len(found & real) / len(found) for found, real in known])),
        float(np.mean([len(found & real) / len(real) for found, real in known])),
    )
