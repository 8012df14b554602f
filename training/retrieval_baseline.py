"""The retrieval baseline: the nearest training photos' caption that agrees most with the others. It writes no words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from captioner.embedded import Form
from training.caption_metrics import lower_words
from training.dataset import Photo

NEIGHBOURS = 20


def consensus(
    pooled_NC: NDArray[np.float32], train_PC: NDArray[np.float32], train_photos: list[Photo], form: Form
) -> list[str]:
    """Return one caption of that form for each of N pooled grids; P training photos are pooled likewise."""
    from pycocoevalcap.cider.cider import Cider

    captioned = [row for row, photo in enumerate(train_photos) if any(c.form == form for c in photo.captions)]
    similarity_NP = _unit(pooled_NC) @ _unit(train_PC[captioned]).T
    chosen = []
    for similarity_P in similarity_NP:
        rows = [captioned[at] for at in np.argsort(-similarity_P)[:NEIGHBOURS]]
        texts = [caption.text for row in rows for caption in train_photos[row].captions if caption.form == form]
        others = {at: [lower_words(t) for n, t in enumerate(texts) if n != at] for at in range(len(texts))}
        agreement = Cider().compute_score(others, {at: [lower_words(text)] for at, text in enumerate(texts)})[1]
        chosen.append(texts[int(np.argmax(agreement))])
    return chosen


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
