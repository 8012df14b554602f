"""Photos to lower a vision encoder with, and to compare it on: the shipped ones, or a folder of one's own."""

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
HELD_OUT = 8  # the last of them, to compare on: they must not have set the ranges
LONGEST_PX = 1024  # a side of the photos that crops are cut from


def calibration_pixels(spec: ImageSpec, folder: Path | None = None, count: int = COUNT) -> NDArray[np.uint8]:
    """Pixels of `count` pictures, (count, height, width, 3): photos of `folder` or the shipped ones, then their crops.

    The same for the same files. Where images are cut into tiles, each picture is one tile. Raises ImageMissing for a
    folder that is not there, ParameterInvalid for one without a photo that can be read.
    """
    tile = replace(spec, longest_px=None)
    return np.stack([load_pixels(file, tile)[0] for file in islice(_files(folder or FOLDER), count)])


def _files(folder: Path) -> Iterator[bytes]:
    """The folder's readable photos, shuffled, and then crops of them without end."""
    chance = random.Random(0)
    if not folder.is_dir():
        raise ImageMissing(f"{folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
    chance.shuffle(paths)
    photos: list[Image.Image] = []
    for path in paths:
        try:
            file = path.read_bytes()
            photo, _ = decode(file)
        except (ImageRefused, OSError):
            continue
        photo.thumbnail((LONGEST_PX, LONGEST_PX))
        photos.append(photo)
        yield file
    if not photos:
        raise ParameterInvalid(f"{folder} has no photo that can be read, and a calibration needs some")
    while True:
        yield _crop(chance.choice(photos), chance)


def _crop(photo: Image.Image, chance: random.Random) -> bytes:
    """The file of a square of half the shorter side to all of it, every other one mirrored."""
    side = chance.randint(min(photo.size) // 2, min(photo.size))
    left, top = chance.randint(0, photo.width - side), chance.randint(0, photo.height - side)
    crop = photo.crop((left, top, left + side, top + side))
    file = io.BytesIO()
    (ImageOps.mirror(crop) if chance.random() < 0.5 else crop).save(file, "BMP")  # nothing is lost, nothing packed
    return file.getvalue()
