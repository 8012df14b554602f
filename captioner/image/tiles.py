"""Split a large image into tiles, for models that encode the tiles and the whole image.

The sizes match the models' training, rounding included: resize to the longest edge, round up to whole tiles, split.
It knows neither files nor models.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def cut(
    image: Image.Image, tile_px: int, longest_px: int, resample: Image.Resampling
) -> tuple[NDArray[np.uint8], int, int]:
    """Return RGB pixels ((rows × columns + 1) × tile, tile, 3) uint8, the number of rows and of columns.

    The tiles come row by row, then the whole image, resized to one tile. An image that fits in one tile is not split:
    it has 0 rows and 0 columns.
    """
    image = image.resize(resized(*image.size, longest_px), resample)
    image = image.resize(whole_tiles(*image.size, tile_px), resample)
    rows, columns = image.height // tile_px, image.width // tile_px
    if rows == columns == 1:
        return np.asarray(image, dtype=np.uint8), 0, 0
    pixels_HWC = np.asarray(image, dtype=np.uint8)
    tiles_RCHWC = pixels_HWC.reshape(rows, tile_px, columns, tile_px, 3).swapaxes(1, 2)
    whole_HWC = np.asarray(image.resize((tile_px, tile_px), resample), dtype=np.uint8)
    return np.concatenate([tiles_RCHWC.reshape(-1, tile_px, 3), whole_HWC]), rows, columns


def resized(width: int, height: int, longest_px: int) -> tuple[int, int]:
    """Return (width, height) in px with `longest_px` as the longer edge and an even shorter edge."""
    if width >= height:
        return longest_px, _even(int(longest_px / (width / height)))
    return _even(int(longest_px * (width / height))), longest_px


def whole_tiles(width: int, height: int, tile_px: int) -> tuple[int, int]:
    """Return (width, height) rounded up to whole tiles: the longer edge first, then the shorter in proportion to it."""
    aspect = width / height
    if width >= height:
        width = _tiles(width, tile_px)
        return width, _tiles(int(width / aspect), tile_px)
    height = _tiles(height, tile_px)
    return _tiles(int(height * aspect), tile_px), height


def _even(length_px: int) -> int:
    return max(length_px + length_px % 2, 1)


def _tiles(length_px: int, tile_px: int) -> int:
    return math.ceil(length_px / tile_px) * tile_px
