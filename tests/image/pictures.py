"""Pictures and image files for the tests of this folder."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import ImageRefused
from captioner.image.decode import decode
from captioner.image.formats import unwrap

WIDTH, HEIGHT = 24, 16
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP", "GIF")
Pixels = NDArray[np.uint8]


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Eight colors in blocks, with four different corners; few enough colors for a palette."""
    y, x = np.mgrid[:height, :width]
    block = (y * 2 // height) * 4 + x * 4 // width
    channels = [(block & 1) * 255, (block >> 1 & 1) * 255, (block >> 2 & 1) * 255]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def half_transparent() -> Image.Image:
    """The picture with a transparent left half."""
    image = picture().convert("RGBA")
    image.paste((9, 9, 9, 0), (0, 0, WIDTH // 2, HEIGHT))
    return image


RGB = np.asarray(picture())
GRAY = np.asarray(picture().convert("L"))
GRAY_RGB = np.stack([GRAY] * 3, -1)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def file(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The bytes of an image file that Pillow writes."""
    options = ({"lossless": True} if file_format == "WEBP" else {}) | options
    saved = io.BytesIO()
    image.save(saved, file_format, **options)
    return saved.getvalue()


PNG = file(picture(), "PNG")


def png_with(data: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG file with another chunk before its pixels."""
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:at] + chunk + data[at:]


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG file whose header claims these dimensions."""
    header = struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]


def pixels(data: bytes) -> Pixels:
    """The decoded pixels."""
    image, info = decode(data)
    assert image.mode == "RGB"
    assert image.size == (info.width, info.height)
    return np.asarray(image)


def outcome(data: bytes) -> Pixels | ImageRefused:
    """The decoded pixels, or the error if it is an ImageRefused."""
    try:
        return pixels(unwrap(data))
    except ImageRefused as refused:
        return refused


def refusal(data: bytes, kind: type[ImageRefused]) -> str:
    """The message of the error, which must be exactly `kind`."""
    with pytest.raises(ImageRefused) as caught:
        decode(data)
    assert type(caught.value) is kind, caught.value
    return str(caught.value)
