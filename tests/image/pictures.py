"""Pictures and image files for the tests of this folder."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import ImageRefused
from captioner.image.decode import decode
from captioner.image.formats import unwrap

WIDTH, HEIGHT = 24, 16
# An encoder that we do not depend on wrote these from `picture`. `rotated` has both a rotation and an EXIF orientation.
HEIC = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "heic").iterdir())}
HEIC_SIZE = (96, 64)
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


def jpeg_of_scans(count: int) -> bytes:
    """A JPEG file of 16 MP whose last scan comes `count` times. Each of them takes milliseconds."""
    data = file(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


def png_with(data: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG file with another chunk before its pixels."""
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:at] + chunk + data[at:]


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG file whose header claims these dimensions."""
    header = struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]


def profile(kind: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile: a header, a table of tags, and the tags."""
    header = struct.pack(">4x4sI4s4s4s", b"none", 0x02100000, kind, space, b"Lab " if space == b"CMYK" else b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    header += bytes(128 - len(header))
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    whole = header + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def rgb_profile(order: str = "RGB") -> bytes:
    """The profile of sRGB's primaries with gamma 2.2, in another order: "GRB" swaps red and green."""
    xyz = {"R": (0.4360, 0.2225, 0.0139), "G": (0.3851, 0.7169, 0.0971), "B": (0.1431, 0.0606, 0.7141)}
    tags = {b"wtpt": b"XYZ " + struct.pack(">4xiii", 0xF6D6, 0x10000, 0xD32D)}
    for channel, primary in zip(b"rgb", order, strict=True):
        tags[bytes([channel]) + b"XYZ"] = b"XYZ " + struct.pack(">4xiii", *(round(v * 65536) for v in xyz[primary]))
        tags[bytes([channel]) + b"TRC"] = b"curv" + struct.pack(">4xIH", 1, round(2.2 * 256))
    return profile(b"mntr", b"RGB ", tags)


def cmyk_profile() -> bytes:
    """A print profile in which every ink is black, except that magenta alone is mid-gray."""
    identity = bytes(range(256))
    lab = [b"\xff\x80\x80"] + [b"\x00\x80\x80"] * 15  # by C, M, Y, K as the bits of the index
    lab[0b0100] = b"\x80\x80\x80"
    matrix = struct.pack(">9i", *(0x10000 * (at % 4 == 0) for at in range(9)))
    table = b"mft1" + struct.pack(">4xBBBx", 4, 3, 2) + matrix + identity * 4 + b"".join(lab) + identity * 3
    return profile(b"prtr", b"CMYK", {b"A2B0": table})


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
