"""Generate images: an endless stream of different crops of the shipped example photos."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

from PIL import Image

from captioner.examples import PHOTOS


def crops(seed: int = 0, size_px: int = 320) -> Iterator[bytes]:
    """Yield JPEG files of `size_px` × `size_px`, cropped at random; the same files for the same seed."""
    rng = random.Random(seed)
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    while True:
        photo = rng.choice(photos)
        side = rng.randint(min(photo.size) // 2, min(photo.size))
        left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
        file = io.BytesIO()
        photo.crop((left, top, left + side, top + side)).resize((size_px, size_px)).save(file, "JPEG", quality=90)
        # A crop of a whole photo may be in the server's feature cache. Decoders ignore bytes after the image's end.
        yield file.getvalue() + rng.randbytes(8)


def png(image: Image.Image) -> bytes:
    """Return the image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
