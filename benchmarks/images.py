"""Images without end, each different: crops of the photos that are shipped."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

from PIL import Image

from captioner.examples import PHOTOS


def crops(seed: int = 0, size_px: int = 320) -> Iterator[bytes]:
    """JPEG files of `size_px` squared, cut from the photos at random places; the same for the same seed."""
    chance = random.Random(seed)
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    while True:
        photo = chance.choice(photos)
        side = chance.randint(min(photo.size) // 2, min(photo.size))
        left, top = chance.randint(0, photo.width - side), chance.randint(0, photo.height - side)
        file = io.BytesIO()
        photo.crop((left, top, left + side, top + side)).resize((size_px, size_px)).save(file, "JPEG", quality=90)
        # Some crops are the whole photo, which a server may have seen; decoders stop before what follows the end.
        yield file.getvalue() + chance.randbytes(8)


def png(picture: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
