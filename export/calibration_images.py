"""Photos to calibrate int8 with and to compare precisions on: the shipped ones, or those of a folder."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from captioner.errors import ImageMissing, ImageRefused, ParameterInvalid
from captioner.examples import FOLDER
from captioner.image.decode import decode, load_pixels
from captioner.image.formats import is_image
from captioner.image.spec import ImageSpec

COUNT = 48
HELD_OUT = 8  # the last of them, for the comparison; they must not set the quantization ranges
CELLS = 16
MAX_SIDE_PX = 1024  # of the photos that crops are cut from


def calibration_pixels(spec: ImageSpec, folder: Path | None = None, count: int = COUNT) -> NDArray[np.uint8]:
    """Return the pixels of `count` images, (count, height, width, 3): whole photos first, then crops of them.

    The photos are those of `folder`, or the shipped ones. The result is deterministic. For a model that cuts images
    into tiles, each image is one tile; for one of dynamic size, it has CELLS rows and columns. Raises ImageMissing for
    a missing folder, ParameterInvalid for a folder without a readable photo.
    """
    height, width = (spec.height, spec.width) if spec.max_pixels is None else spec.pixel_size(CELLS, CELLS)
    fixed = replace(spec, height=height, width=width, longest_px=None, max_pixels=None)
    return np.stack([load_pixels(file, fixed)[0] for file in islice(_files(folder or FOLDER), count)])


def _files(folder: Path) -> Iterator[bytes]:
    """Yield the folder's readable photos, shuffled, then random crops of them without end."""
    rng = random.Random(0)
    if not folder.is_dir():
        raise ImageMissing(f"{folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
    rng.shuffle(paths)
    photos: list[Image.Image] = []
    for path in paths:
        try:
            file = path.read_bytes()
            photo, _ = decode(file)
        except (ImageRefused, OSError):
            continue
        photo.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        photos.append(photo)
        yield file
    if not photos:
        raise ParameterInvalid(f"{folder} has no readable photo; a calibration needs at least one")
    while True:
        yield _crop(rng.choice(photos), rng)


def _crop(photo: Image.Image, rng: random.Random) -> bytes:
    """Return the file of a random square crop, from half the shorter side to all of it; half of them mirrored."""
    side = rng.randint(min(photo.size) // 2, min(photo.size))
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    crop = photo.crop((left, top, left + side, top + side))
    file = io.BytesIO()
    (ImageOps.mirror(crop) if rng.random() < 0.5 else crop).save(file, "BMP")  # lossless, and fast to write
    return file.getvalue()
