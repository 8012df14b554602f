"""Image files of every kind to upright RGB pixels, or to a refusal that says why."""

from __future__ import annotations

import base64
import io
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import (
    ImageBroken,
    ImageFormatUnknown,
    ImageMissing,
    ImageRefused,
    ImageTooLarge,
    ImageTooSmall,
)
from captioner.image.decode import decode, load_pixels
from captioner.image.formats import MAX_PIXELS, MAX_SIDE_PX, MIN_SIDE_PX, check_file_size, unwrap
from captioner.image.spec import ImageSpec
from captioner.wire import MAX_IMAGE_BYTES, ImageInfo

WIDTH, HEIGHT = 24, 16
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP", "GIF")
Pixels = NDArray[np.uint8]


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Eight colours in blocks, no two corners alike; few enough for a palette."""
    y, x = np.mgrid[:height, :width]
    block = (y * 2 // height) * 4 + x * 4 // width
    channels = [(block & 1) * 255, (block >> 1 & 1) * 255, (block >> 2 & 1) * 255]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def file(image: Image.Image, file_format: str, **options: object) -> bytes:
    options = ({"lossless": True} if file_format == "WEBP" else {}) | options
    saved = io.BytesIO()
    image.save(saved, file_format, **options)
    return saved.getvalue()


def pixels(data: bytes) -> Pixels:
    image, info = decode(data)
    assert image.mode == "RGB"
    assert image.size == (info.width, info.height)
    return np.asarray(image)


def outcome(data: bytes) -> Pixels | ImageRefused:
    """Pixels, or the refusal; anything else that is raised is a fault."""
    try:
        return pixels(unwrap(data))
    except ImageRefused as refused:
        return refused


def refusal(data: bytes, kind: type[ImageRefused]) -> str:
    with pytest.raises(ImageRefused) as caught:
        decode(data)
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


def png_with(data: bytes, name: bytes, body: bytes) -> bytes:
    """`data` with one more chunk in front of its pixels."""
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:at] + chunk + data[at:]


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes whose header announces more."""
    data = file(picture(), "PNG")
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


RGB = np.asarray(picture())
GREY = np.asarray(picture().convert("L"))
GREY_RGB = np.stack([GREY] * 3, -1)


def see_through() -> Image.Image:
    """The picture with its left half transparent."""
    image = picture().convert("RGBA")
    image.paste((9, 9, 9, 0), (0, 0, WIDTH // 2, HEIGHT))
    return image


def on_white(image: Image.Image) -> Pixels:
    expected = np.asarray(image.convert("RGB")).copy()
    expected[:, : WIDTH // 2] = 255
    return expected


@pytest.mark.parametrize("file_format", [*LOSSLESS, "JPEG"])
def test_the_whole_image_comes_out_in_rgb(file_format: str) -> None:
    data = file(picture(), file_format, **({"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}))
    difference = np.abs(pixels(data).astype(int) - RGB)
    assert difference.max() <= (8 if file_format == "JPEG" else 0)
    assert decode(data)[1] == ImageInfo(file_format, WIDTH, HEIGHT, 1, rotated=False, alpha=False)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("1", f) for f in ("PNG", "BMP", "TIFF", "GIF")]
    + [("L", f) for f in (*LOSSLESS, "JPEG")]
    + [("P", f) for f in ("PNG", "BMP", "TIFF", "GIF")]
    + [("CMYK", f) for f in ("TIFF", "JPEG")],
)
def test_every_mode_becomes_the_rgb_it_shows(mode: str, file_format: str) -> None:
    if mode == "P":
        image, expected = picture().quantize(8), RGB
    elif mode == "CMYK":
        image, expected = picture().convert("CMYK"), RGB
    elif mode == "1":
        image = picture().convert("1", dither=Image.Dither.NONE)
        expected = np.asarray(image.convert("RGB"))
    else:
        image, expected = picture().convert("L"), GREY_RGB
    data = file(image, file_format, **({"quality": 100} if file_format == "JPEG" else {}))
    difference = np.abs(pixels(data).astype(int) - expected)
    assert difference.max() <= (10 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_on_white(file_format: str) -> None:
    data = file(see_through(), file_format)
    assert (pixels(data) == on_white(picture())).all()
    assert decode(data)[1].alpha


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_with_alpha_is_laid_on_white(file_format: str) -> None:
    data = file(see_through().convert("LA"), file_format)
    assert (pixels(data) == on_white(picture().convert("L"))).all()


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_laid_on_white(file_format: str) -> None:
    image = picture().quantize(8)
    key = int(np.asarray(image)[0, 0])
    found = pixels(file(image, file_format, transparency=key))
    expected = RGB.copy()
    expected[(RGB[0, 0] == RGB).all(-1)] = 255
    assert (found == expected).all()


def test_half_transparent_pixels_mix_with_white() -> None:
    found = pixels(file(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG"))
    assert found[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_brightness(file_format: str) -> None:
    image = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert (pixels(file(image, file_format)) == GREY_RGB).all()


def test_sixteen_bits_of_grey_are_seen_through_at_the_transparent_grey_only() -> None:
    image = Image.fromarray(GREY.astype(np.uint16) * 257)
    data = png_with(file(image, "PNG"), b"tRNS", struct.pack(">H", int(GREY[0, 0]) * 257))
    expected = GREY_RGB.copy()
    expected[GREY[0, 0] == GREY] = 255
    assert (pixels(data) == expected).all()
    assert decode(data)[1].alpha


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_a_channel_are_refused(mode: str) -> None:
    assert "32 bits" in refusal(file(Image.new(mode, (16, 16)), "TIFF"), ImageFormatUnknown)


# What a camera held in each way writes: the picture, turned so that the orientation turns it back.
CAMERA: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", CAMERA)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_from_a_turned_camera_is_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(CAMERA[orientation](RGB)))
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}
    data = file(image, file_format, exif=exif, **options)
    assert pixels(data).shape == RGB.shape
    assert np.abs(pixels(data).astype(int) - RGB).max() <= 8
    assert decode(data)[1].rotated == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(picture(), "PNG", exif=exif)
    assert (pixels(data) == RGB).all()
    assert not decode(data)[1].rotated


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_broken_exif_block_never_costs_the_photo(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a cat", 72.0
    whole = bytearray(file(picture(), "JPEG", exif=exif))
    start = whole.index(b"Exif")
    end = start + struct.unpack(">H", whole[start - 2 : start])[0] - 2
    for at in data.draw(st.lists(st.integers(start, end - 1), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    assert decode(bytes(whole))[0].size in ((WIDTH, HEIGHT), (HEIGHT, WIDTH))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken_and_all_are_counted(file_format: str) -> None:
    later = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    data = file(picture(), file_format, save_all=True, append_images=later)
    assert (pixels(data) == RGB).all()
    assert decode(data)[1].frames == 3


def test_a_phones_photo_with_a_second_one_inside_is_read() -> None:
    data = file(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "red")])
    assert np.abs(pixels(data).astype(int) - RGB).mean() < 30
    assert decode(data)[1].frames == 2


PNG = file(picture(), "PNG")
TEXT = base64.b64encode(PNG)


@pytest.mark.parametrize(
    "data",
    [
        PNG,
        TEXT,
        base64.encodebytes(PNG),
        base64.encodebytes(PNG).replace(b"\n", b"\r\n"),
        b"\n " + TEXT + b"\n",
        b"data:image/png;base64," + TEXT,
        b"DATA:;BASE64," + base64.encodebytes(PNG),
    ],
    ids=["file", "base64", "lines", "crlf", "spaces", "data URL", "DATA URL"],
)
def test_a_file_is_the_same_in_every_wrapping(data: bytes) -> None:
    assert unwrap(data) == PNG
    assert (load_pixels(data, ImageSpec(HEIGHT, WIDTH, "bilinear"))[0] == RGB).all()


@pytest.mark.parametrize(
    "data", [b"data:image/png," + PNG, b"data:image/png;base64", b"data:", b"data:image/png;base64,@@@@", TEXT[:-2]]
)
def test_a_broken_wrapping_is_refused(data: bytes) -> None:
    with pytest.raises(ImageFormatUnknown):
        decode(unwrap(data))


@pytest.mark.parametrize("data", [b"x", b"hello", b"\x00" * 100, b"%PDF-1.7", b"<svg></svg>", b"RIFF\0\0\0\0WAVE"])
def test_bytes_of_no_known_format_are_refused_with_their_beginning(data: bytes) -> None:
    with pytest.raises(ImageFormatUnknown) as caught:
        load_pixels(data, ImageSpec(8, 8, "bilinear"))
    assert repr(data[:4])[2:-1] in str(caught.value)
    assert "JPEG, PNG" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"  \n", b" "])
def test_no_image_is_missing(data: bytes) -> None:
    with pytest.raises(ImageMissing):
        load_pixels(data, ImageSpec(8, 8, "bilinear"))


def test_the_limit_on_bytes_is_exact_and_named() -> None:
    check_file_size(MAX_IMAGE_BYTES)
    with pytest.raises(ImageTooLarge, match=r"21\.0 MiB; the limit is 20 MiB"):
        check_file_size(MAX_IMAGE_BYTES + 2**20)
    with pytest.raises(ImageTooLarge):
        unwrap(PNG + bytes(MAX_IMAGE_BYTES + 1 - len(PNG)))
    largest = unwrap(base64.encodebytes(PNG + bytes(MAX_IMAGE_BYTES - len(PNG))))
    assert len(largest) == MAX_IMAGE_BYTES, "base64 makes a file longer, the limit is the file's"


@pytest.mark.parametrize(("width", "height"), [(MAX_SIDE_PX + 1, 8), (8, MAX_SIDE_PX + 1), (10_001, 10_000)])
def test_too_many_pixels_are_refused_with_both_numbers(width: int, height: int) -> None:
    sentence = refusal(png_claiming(width, height), ImageTooLarge)
    assert f"{width}x{height} px" in sentence
    assert str(MAX_SIDE_PX) in sentence or "100 MP" in sentence


@pytest.mark.parametrize("side", [16_384, 20_000, 2**31 - 1])
@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "WEBP"])
def test_a_header_that_announces_a_bomb_is_refused_before_anything_is_decoded(file_format: str, side: int) -> None:
    if file_format == "PNG":
        data = png_claiming(side, side)
    elif file_format == "GIF":
        data = file(picture(), "GIF")
        data = data[:6] + struct.pack("<HH", min(side, 65535), min(side, 65535)) + data[10:]
    elif file_format == "BMP":
        data = file(picture(), "BMP")
        data = data[:18] + struct.pack("<ii", side, side) + data[26:]
    else:  # the extended header's canvas, at most 16383 px
        data = file(see_through(), "WEBP")
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
    if file_format != "WEBP":  # whose own decoder refuses a canvas that is not the picture's
        assert type(caught.value) is ImageTooLarge


def test_a_very_small_image_is_refused_and_the_smallest_is_not() -> None:
    sentence = refusal(file(picture(MIN_SIDE_PX - 1, 16), "PNG"), ImageTooSmall)
    assert "7x16 px" in sentence
    assert str(MIN_SIDE_PX) in sentence
    assert pixels(file(picture(MIN_SIDE_PX, MIN_SIDE_PX), "PNG")).shape == (MIN_SIDE_PX, MIN_SIDE_PX, 3)


def test_a_truncated_jpeg_is_refused_as_broken() -> None:
    data = file(picture(), "JPEG")
    sentence = refusal(data[: len(data) * 3 // 4], ImageBroken)
    assert f"JPEG file of {len(data) * 3 // 4} bytes" in sentence


@pytest.mark.parametrize("resample", ["bicubic", "lanczos", "bilinear"])
def test_the_image_is_resized_straight_as_pillow_would(resample: str) -> None:
    spec = ImageSpec(height=20, width=10, resample=resample)  # type: ignore[arg-type]
    found, info = load_pixels(PNG, spec)
    assert found.shape == (20, 10, 3)
    assert found.dtype == np.uint8
    assert (found == np.asarray(picture().resize((10, 20), Image.Resampling[resample.upper()]))).all()
    assert (info.width, info.height) == (WIDTH, HEIGHT), "the details tell of the file, not of the model's pixels"


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
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
}


@pytest.mark.parametrize("data", SEEDS.values(), ids=SEEDS)
@given(st.floats(0, 1, exclude_max=True))
@example(0.5)
@example(0.9)
@example(0.99)
@settings(max_examples=60, deadline=None)
def test_the_beginning_of_a_file_is_refused_or_has_all_its_pixels(data: bytes, share: float) -> None:
    found = outcome(data[: int(len(data) * share)])
    if isinstance(found, ImageRefused):
        assert type(found) in (ImageBroken, ImageFormatUnknown, ImageMissing)
    else:
        assert (found == pixels(data)).all(), "a part of a picture was taken for the whole"


def test_the_last_bytes_of_every_file_are_refused_or_not_needed() -> None:
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
def test_a_damaged_file_is_pixels_or_a_refusal_without_addresses(data: bytes, damage: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for share, value in damage:
        damaged[int(share**3 * len(data))] = value  # mostly near the beginning, where the structure is
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
def test_any_bytes_are_pixels_or_a_refusal(magic: bytes, rest: bytes) -> None:
    found = outcome(magic + rest)
    if isinstance(found, ImageRefused):
        assert not re.search(r"at 0x|<_io|\n", str(found)), found
