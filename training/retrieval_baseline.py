"""The floor: the caption of a photo's neighbours that agrees most with the others', no words written at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from captioner.embedded import Form
from training.caption_metrics import plain
from training.dataset import Photo

NEIGHBOURS = 20


def consensus(
    whole_NC: NDArray[np.float32], known_PC: NDArray[np.float32], photos: list[Photo], form: Form
) -> list[str]:
    """For each of N pooled grids, one caption of that form of its nearest photos (P of them, pooled likewise)."""
    from pycocoevalcap.cider.cider import Cider

    known = [row for row, photo in enumerate(photos) if any(c.form == form for c in photo.captions)]
    near = _unit(whole_NC) @ _unit(known_PC[known]).T
    chosen = []
    for similar in near:
        rows = [known[at] for at in np.argsort(-similar)[:NEIGHBOURS]]
        texts = [caption.text for row in rows for caption in photos[row].captions if caption.form == form]
        others = {at: [plain(t) for n, t in enumerate(texts) if n != at] for at in range(len(texts))}
        agreed = Cider().compute_score(others, {at: [plain(text)] for at, text in enumerate(texts)})[1]
        chosen.append(texts[int(np.argmax(agreed))])
    return chosen


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
