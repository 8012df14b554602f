"""The golden sample of a published model: one image, its features and its caption, computed by the exporter.

A load or a publish passes its self-test if the server reproduces them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.artifacts.manifest import GOLDEN_FEATURES, GoldenSample
from captioner.errors import ArtefactBroken

GOLDEN_TOKENS = 24  # maximum length of the golden caption
MIN_OVERLAP = 0.5  # of words or tokens: rounding may flip a close choice


def load_features(folder: Path) -> NDArray[np.float32]:
    """Return the exporter's features of the golden image, as the decoder reads them. Raises ArtefactBroken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        features: NDArray[np.float32] = load_file(folder / GOLDEN_FEATURES)["features"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtefactBroken(f"{folder / GOLDEN_FEATURES} cannot be read: {error}") from error
    return features


def check_caption(golden: GoldenSample, caption: str) -> None:
    """Compare a served caption of the golden image with the exporter's, word by word.

    Raises ArtefactBroken with both captions when they share fewer than MIN_OVERLAP of their words.
    """
    if overlap(golden.caption.split(), caption.split()) < MIN_OVERLAP:
        raise ArtefactBroken(f"the golden caption is {caption!r}; the exporter's was {golden.caption!r}")


def overlap(expected: Iterable[object], found: Iterable[object]) -> float:
    """Return the Dice coefficient of two multisets, from 0 to 1; 1 when both are empty."""
    one, other = Counter(expected), Counter(found)
    both = one.total() + other.total()
    return 2 * (one & other).total() / both if both else 1.0
