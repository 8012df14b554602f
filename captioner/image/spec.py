"""The pixels that a model expects. This module does not import Pillow, so a manifest can be read anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageSpec:
    """The pixels a model expects: the whole image resized to (height, width) without keeping the aspect ratio.

    A model may also read an image as a grid whose cells have that size. With `longest_px`, the cells are tiles: see
    `tiles.cut`. With `max_pixels`, they are the image's tokens, and the image is resized to whole cells: see
    `dynamic_size.fitted`.
    """

    height: int  # px
    width: int  # px
    resample: Literal["bicubic", "lanczos", "bilinear"]
    longest_px: int | None = None
    crop: bool = False  # resize the shorter side, then crop the center
    min_pixels: int = 0  # of the resized image, as max_pixels
    max_pixels: int | None = None

    @property
    def max_grid(self) -> tuple[int, int]:
        """Rows and columns of a grid of the maximum number of cells; 0 when images are not split."""
        if self.max_pixels is not None:
            return 1, self.max_pixels // (self.height * self.width)
        tiles = 0 if self.longest_px is None else math.ceil(self.longest_px / min(self.height, self.width))
        return tiles, tiles

    @property
    def min_grid(self) -> tuple[int, int]:
        """Rows and columns of the smallest grid; 0 when an image need not be split."""
        return (0, 0) if self.max_pixels is None else (1, 1)

    def parts(self, rows: int, columns: int) -> int:
        """Return the number of encoded parts of an image with this grid; tiles come with the whole image."""
        return rows * columns + (self.max_pixels is None)

    def pixel_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Return height and width, in px, of the pixels of an image with this grid; tiles stand in one column."""
        if self.max_pixels is not None:
            return rows * self.height, columns * self.width
        return self.parts(rows, columns) * self.height, self.width
