"""The size of an image for models that read images of many sizes, in whole square cells and within limits of pixels.

The sizes match the models' training, rounding included. This module knows numbers, not images.
"""

from __future__ import annotations

import math


def fitted(width: int, height: int, cell_px: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the rows and columns of cells to which an image of (width, height) px is resized.

    The aspect ratio is kept as closely as whole cells allow. There are never more pixels than `max_pixels`, not even
    for a strip that the models' own processor makes larger.
    """
    sides = height, width
    rows, columns = (round(side / cell_px) for side in sides)
    if rows * columns * cell_px**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (math.floor(side / shrink / cell_px) for side in sides)
    elif rows * columns * cell_px**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / cell_px) for side in sides)
    rows, columns = max(rows, 1), max(columns, 1)
    most = max_pixels // cell_px**2
    if rows * columns > most:
        return (rows, most // rows) if rows < columns else (most // columns, columns)
    return rows, columns
