"""Image files that are too large, too small, truncated or damaged are refused, cheaply and with a clear message."""

from __future__ import annotations

import re
import struct
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from captioner.errors import ImageBroken, ImageFormatUnknown, ImageMissing, ImageRefused, ImageTooLarge, ImageTooSmall
from captioner.image.decode import decode
from captioner.image.limits import MAX_PIXELS, MAX_SIDE_PX, MIN_SIDE_PX
from tests.image.pictures import (
    HEIC,
    NOISE,
    file,
    half_transparent,
    outcome,
    picture,
    pixels,
    png_claiming,
    refusal,
)


@pytest.mark.parametrize(("width", "height"), [(MAX_SIDE_PX + 1, 8), (8, MAX_SIDE_PX + 1), (10_001, 10_000)])
def test_the_error_for_too_many_pixels_names_the_size_and_the_limit(width: int, height: int) -> None:
    sentence = refusal(png_claiming(width, height), ImageTooLarge)
    assert f"{width}x{height} px" in sentence
    assert str(MAX_SIDE_PX) in sentence or "100 MP" in sentence


@pytest.mark.parametrize("side", [16_384, 20_000, 2**31 - 1])
@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "WEBP"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(file_format: str, side: int) -> None:
    if file_format == "PNG":
        data = png_claiming(side, side)
    elif file_format == "GIF":
        data = file(picture(), "GIF")
        data = data[:6] + struct.pack("<HH", min(side, 65535), min(side, 65535)) + data[10:]
    elif file_format == "BMP":
        data = file(picture(), "BMP")
        data = data[:18] + struct.pack("<ii", side, side) + data[26:]
    else:  # the canvas of the extended header, at most 16383 px
        data = file(half_transparent(), "WEBP")
        canvas = struct.pack("<I", 16_382)[:3] * 2
        chunk = b"VP8X" + struct.pack("<IB3x", 10, 0x10) + canvas
        data = data[:12] + chunk + data[12:]
        data = b"RIFF" + struct.pack("<I", len(data) - 8) + data[8:]
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises((ImageTooLarge, ImageBroken)) as caught:
        decode(data)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 10 * 2**20
    if file_format != "WEBP":  # its decoder refuses a canvas of another size than the picture
        assert type(caught.value) is ImageTooLarge


def test_the_limit_on_small_images_is_exact_and_named() -> None:
    sentence = refusal(file(picture(MIN_SIDE_PX - 1, 16), "PNG"), ImageTooSmall)
    assert "7x16 px" in sentence
    assert str(MIN_SIDE_PX) in sentence
    assert pixels(file(picture(MIN_SIDE_PX, MIN_SIDE_PX), "PNG")).shape == (MIN_SIDE_PX, MIN_SIDE_PX, 3)


def test_the_error_for_a_truncated_jpeg_names_its_format_and_size() -> None:
    data = file(picture(), "JPEG")
    sentence = refusal(data[: len(data) * 3 // 4], ImageBroken)
    assert f"JPEG file of {len(data) * 3 // 4} bytes" in sentence


SEEDS = {
    "JPEG": file(NOISE, "JPEG"),
    "progressive": file(NOISE, "JPEG", progressive=True),
    "PNG": file(NOISE, "PNG"),
    "palette": file(NOISE.quantize(64), "PNG"),
    "interlaced GIF": file(NOISE, "GIF", interlace=1),
    "animation": file(NOISE, "GIF", save_all=True, append_images=[picture(64, 48)], interlace=0),
    "BMP": file(NOISE, "BMP"),
    "TIFF": file(NOISE, "TIFF"),
    "TIFF LZW": file(NOISE, "TIFF", compression="tiff_lzw"),
    "TIFF deflate": file(NOISE, "TIFF", compression="tiff_adobe_deflate"),
    "WEBP": file(NOISE, "WEBP"),
    "WEBP lossy": file(NOISE, "WEBP", lossless=False),
    "AVIF": file(NOISE, "AVIF"),
    "HEIC": HEIC["plain"],
    "ICO": file(NOISE, "ICO", sizes=[(64, 48)]),
}


@pytest.mark.parametrize("data", SEEDS.values(), ids=SEEDS)
@given(st.floats(0, 1, exclude_max=True))
@example(0.5)
@example(0.9)
@example(0.99)
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused_or_has_all_its_pixels(data: bytes, share: float) -> None:
    found = outcome(data[: int(len(data) * share)])
    if isinstance(found, ImageRefused):
        assert type(found) in (ImageBroken, ImageFormatUnknown, ImageMissing)
    else:
        assert (found == pixels(data)).all(), "a partial picture was accepted"


def test_a_file_without_its_last_bytes_is_refused_or_has_all_its_pixels() -> None:
    for name, data in SEEDS.items():
        whole = pixels(data)
        for missing in range(1, 40):
            found = outcome(data[:-missing])
            if isinstance(found, ImageRefused):
                assert type(found) is ImageBroken, name
            else:
                assert (found == whole).all(), f"{name} without its last {missing} bytes"


@pytest.mark.parametrize("data", SEEDS.values(), ids=SEEDS)
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=80, deadline=2000)
def test_a_damaged_file_is_decoded_or_refused_without_memory_addresses(
    data: bytes, damage: list[tuple[float, int]]
) -> None:
    damaged = bytearray(data)
    for share, value in damage:
        damaged[int(share**3 * len(data))] = value  # mostly near the beginning, which holds the structure
    found = outcome(bytes(damaged))
    if isinstance(found, ImageRefused):
        assert not re.search(r"at 0x|<_io|\n", str(found)), found
    else:
        assert found.size <= 3 * MAX_PIXELS


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0"]),
    st.binary(max_size=200),
)
@settings(max_examples=300, deadline=2000)
def test_any_bytes_are_decoded_or_refused(magic: bytes, rest: bytes) -> None:
    found = outcome(magic + rest)
    if isinstance(found, ImageRefused):
        assert not re.search(r"at 0x|<_io|\n", str(found)), found
