"""Text, comments and other side information cost neither the picture nor the time of others."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from captioner.errors import ImageBroken
from captioner.image.decode import decode
from captioner.image.side_information import gif_without_comments
from tests.image.pictures import NOISE, PNG, RGB, file, picture, pixels, png_with, refusal, rgb_profile

LONG = zlib.compress(bytes(2 * 2**20))
LARGE_PROFILE = zlib.compress(rgb_profile("GRB") + bytes(3 * 2**19))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"zTXt", b"workflow\0\0" + LONG),
        (b"iTXt", b"workflow\0\1\0\0\0" + LONG),
        (b"tEXt", b"workflow\0" + bytes(2 * 2**20)),
        (b"iCCP", b"large\0\0" + LARGE_PROFILE),
        (b"iCCP", b"broken\0\0" + LONG[:100]),
        (b"iCCP", b"no end"),
    ],
)
def test_a_png_with_large_text_or_a_large_profile_is_decoded(name: bytes, body: bytes) -> None:
    assert (pixels(png_with(PNG, name, body)) == RGB).all()


def test_a_profile_beside_large_text_is_applied() -> None:
    plain = file(picture(), "PNG", icc_profile=rgb_profile("GRB"))
    assert (pixels(png_with(plain, b"zTXt", b"workflow\0\0" + LONG)) == pixels(plain)).all()
    assert np.abs(pixels(plain).astype(int) - RGB).max() > 100


def test_a_png_with_damaged_text_is_decoded_and_keeps_its_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = png_with(file(picture(), "PNG", exif=exif), b"tEXt", b"a\0some words")
    damaged = data.replace(b"some words", b"SOME words")
    assert (pixels(damaged) == RGB[::-1, ::-1]).all()


def test_a_png_with_damaged_pixels_beside_large_text_is_refused() -> None:
    data = png_with(PNG, b"zTXt", b"workflow\0\0" + LONG)
    refusal(data[:-30], ImageBroken)


def test_a_bomb_of_text_costs_little_memory() -> None:
    packer = zlib.compressobj()
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()
    tracemalloc.start()
    assert (pixels(png_with(PNG, b"zTXt", b"bomb\0\0" + bomb)) == RGB).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def gif_with(extension: bytes, seed: bytes) -> bytes:
    """A GIF file with this before its first picture."""
    at = 13 + (3 * (2 << (seed[10] & 7)) if seed[10] & 0x80 else 0)
    return seed[:at] + extension + seed[at:]


def test_a_gif_without_its_comments_has_the_same_frames() -> None:
    animation = file(NOISE, "GIF", save_all=True, append_images=[picture(64, 48), NOISE.rotate(180)], loop=0)
    commented = gif_with(b"\x21\xfe\x03abc\x02de\x00" * 3, animation)
    assert gif_without_comments(commented) == animation == gif_without_comments(animation)
    for end in range(len(commented) - 200, len(commented)):
        assert gif_without_comments(commented[:end]) == animation[: end - len(commented)]


def tiff_of_pages(count: int) -> bytes:
    """A TIFF file of `count` pages that share their pixels."""
    size = 2 + 12 * 8 + 4
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8 + size * count), (278, 8), (279, 64)]
    entries = struct.pack("<H", 8) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    nexts = [8 + size * page for page in range(1, count)] + [0]
    pages = b"".join(entries + struct.pack("<I", each) for each in nexts)
    return b"II*\0" + struct.pack("<I", 8) + pages + bytes(range(64))


SLOW = {  # each of one or two MiB; Pillow's own time for them is quadratic
    "pages of a TIFF": tiff_of_pages(20_000),
    "blocks of a comment": gif_with(b"\x21\xfe" + (b"\xff" + bytes(255)) * 4096 + b"\0", file(NOISE, "GIF")),
    "comments of a GIF": gif_with(b"\x21\xfe\x01c\x00" * 200_000, file(NOISE, "GIF")),
    "EXIF blocks": b"\xff\xd8" + b"\xff\xe1\0\x09Exif\0\0x" * 90_000 + file(NOISE, "JPEG")[2:],
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_the_time_grows_no_faster_than_the_file(data: bytes) -> None:
    began = time.process_time()
    if data[:2] == b"\xff\xd8":
        assert "EXIF blocks; the limit is" in refusal(data, ImageBroken)
    else:
        assert decode(data)[0].width in (8, 64)
    assert time.process_time() - began < 1
