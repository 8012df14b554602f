"""The pixels that a model expects. This module does not import Pillow, so a manifest can be read anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageSpec:
    """The pixels a model expects: the whole image resized to (height, width) without keeping the aspect ratio.

    With `longest_px` the image is also cut into square tiles of that size, see `tiles.cut`.
    """

    height: int  # px
    width: int  # px
    resample: Literal["bicubic", "lanczos", "bilinear"]
    longest_px: int | None = None
    crop: bool = False  # resize the shorter side, then crop the center

    @property
    def max_tiles(self) -> int:
        """Maximum number of tiles along the longest side; 0 when images are not tiled."""
        return 0 if self.longest_px is None else math.ceil(self.longest_px / min(self.height, self.width))
