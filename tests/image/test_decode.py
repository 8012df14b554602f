"""Image files of every format and mode are decoded to upright RGB pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.errors import ImageFormatUnknown
from captioner.image.decode import decode, load_pixels
from captioner.image.formats import sniff
from captioner.image.spec import ImageSpec
from captioner.wire import ImageInfo
from tests.image.pictures import (
    GRAY,
    GRAY_RGB,
    HEIC,
    HEIC_SIZE,
    HEIGHT,
    LOSSLESS,
    NOISE,
    PNG,
    RGB,
    WIDTH,
    Pixels,
    file,
    half_transparent,
    picture,
    pixels,
    png_with,
    refusal,
)

LOSSY: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def on_white(image: Image.Image) -> Pixels:
    """The pixels of `half_transparent` composited on white."""
    expected = np.asarray(image.convert("RGB")).copy()
    expected[:, : WIDTH // 2] = 255
    return expected


@pytest.mark.parametrize("file_format", [*LOSSLESS, *LOSSY])
def test_every_format_is_decoded_to_rgb(file_format: str) -> None:
    data = file(picture(), file_format, **LOSSY.get(file_format, {}))
    difference = np.abs(pixels(data).astype(int) - RGB)
    assert difference.max() <= (8 if file_format in LOSSY else 0)
    assert decode(data)[1] == ImageInfo(file_format, WIDTH, HEIGHT, 1, rotated=False, alpha=False)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("1", f) for f in ("PNG", "BMP", "TIFF", "GIF")]
    + [("L", f) for f in (*LOSSLESS, "JPEG")]
    + [("P", f) for f in ("PNG", "BMP", "TIFF", "GIF")]
    + [("CMYK", f) for f in ("TIFF", "JPEG")],
)
def test_every_mode_is_converted_to_rgb(mode: str, file_format: str) -> None:
    if mode == "P":
        image, expected = picture().quantize(8), RGB
    elif mode == "CMYK":
        image, expected = picture().convert("CMYK"), RGB
    elif mode == "1":
        image = picture().convert("1", dither=Image.Dither.NONE)
        expected = np.asarray(image.convert("RGB"))
    else:
        image, expected = picture().convert("L"), GRAY_RGB
    data = file(image, file_format, **({"quality": 100} if file_format == "JPEG" else {}))
    difference = np.abs(pixels(data).astype(int) - expected)
    assert difference.max() <= (10 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(file_format: str) -> None:
    data = file(half_transparent(), file_format)
    assert (pixels(data) == on_white(picture())).all()
    assert decode(data)[1].alpha


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_gray_with_alpha_is_composited_on_white(file_format: str) -> None:
    data = file(half_transparent().convert("LA"), file_format)
    assert (pixels(data) == on_white(picture().convert("L"))).all()


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_composited_on_white(file_format: str) -> None:
    image = picture().quantize(8)
    key = int(np.asarray(image)[0, 0])
    found = pixels(file(image, file_format, transparency=key))
    expected = RGB.copy()
    expected[(RGB[0, 0] == RGB).all(-1)] = 255
    assert (found == expected).all()


def test_half_transparent_pixels_are_blended_with_white() -> None:
    found = pixels(file(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG"))
    assert found[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_brightness(file_format: str) -> None:
    image = Image.fromarray(GRAY.astype(np.uint16) * 257)
    assert (pixels(file(image, file_format)) == GRAY_RGB).all()


def test_16_bit_gray_is_transparent_only_at_its_transparent_value() -> None:
    image = Image.fromarray(GRAY.astype(np.uint16) * 257)
    data = png_with(file(image, "PNG"), b"tRNS", struct.pack(">H", int(GRAY[0, 0]) * 257))
    expected = GRAY_RGB.copy()
    expected[GRAY[0, 0] == GRAY] = 255
    assert (pixels(data) == expected).all()
    assert decode(data)[1].alpha


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_per_channel_are_refused(mode: str) -> None:
    assert "32 bits" in refusal(file(Image.new(mode, (16, 16)), "TIFF"), ImageFormatUnknown)


# For each EXIF orientation, the pixels that a rotated camera stores.
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
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_a_photo_of_a_rotated_camera_is_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(CAMERA[orientation](RGB)))
    data = file(image, file_format, exif=exif, **LOSSY.get(file_format, {}))
    assert pixels(data).shape == RGB.shape
    assert np.abs(pixels(data).astype(int) - RGB).max() <= 8
    assert decode(data)[1].rotated == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(picture(), "PNG", exif=exif)
    assert (pixels(data) == RGB).all()
    assert not decode(data)[1].rotated


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_photo_with_a_broken_exif_block_is_decoded(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a cat", 72.0
    whole = bytearray(file(picture(), "JPEG", exif=exif))
    start = whole.index(b"Exif")
    end = start + struct.unpack(">H", whole[start - 2 : start])[0] - 2
    for at in data.draw(st.lists(st.integers(start, end - 1), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    assert decode(bytes(whole))[0].size in ((WIDTH, HEIGHT), (HEIGHT, WIDTH))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_reduced_to_its_first_frame_and_its_frames_are_counted(file_format: str) -> None:
    later = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    data = file(picture(), file_format, save_all=True, append_images=later)
    assert np.abs(pixels(data).astype(int) - RGB).mean() < (30 if file_format == "AVIF" else 1e-9)
    assert (decode(data)[1].frames, decode(data)[1].frame) == (3, 0)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_that_fades_in_is_reduced_to_its_first_frame_that_is_not_flat(file_format: str) -> None:
    photo = picture(64, 48)
    black, dim = Image.new("RGB", photo.size), photo.point(lambda level: level // 16)
    data = file(black, file_format, save_all=True, append_images=[dim, photo, black])
    assert np.abs(pixels(data).astype(int) - np.asarray(photo)).mean() < 30
    assert (decode(data)[1].frames, decode(data)[1].frame) == (4, 2)


@pytest.mark.parametrize("colors", [["black"], ["black", "gray", "white"], ["black", "red"] * 60])
def test_an_animation_of_flat_frames_is_reduced_to_its_first_frame(colors: list[str]) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in colors]
    data = file(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert not pixels(data).any()
    assert decode(data)[1].frame == 0


def test_an_animation_with_a_broken_second_frame_is_reduced_to_its_first_frame() -> None:
    data = file(Image.new("RGB", (64, 48)), "GIF", save_all=True, append_images=[NOISE])
    assert decode(data)[1].frame == 1
    assert not pixels(data[:-3000]).any()
    assert decode(data[:-3000])[1].frame == 0


def test_the_first_page_of_a_tiff_is_decoded() -> None:
    data = file(picture(), "TIFF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "red")] * 4)
    assert (pixels(data) == RGB).all()
    assert decode(data)[1].frames == 2, "the pages are not counted"


@pytest.mark.parametrize("name", ["plain", "rotated", "two"])
def test_a_heic_photo_is_upright_once(name: str) -> None:
    found, expected = pixels(HEIC[name]).astype(int), np.asarray(picture(*HEIC_SIZE)).astype(int)
    assert np.abs(found - expected).mean() < 6
    info = decode(HEIC[name])[1]
    assert (info.format, info.frames, info.rotated) == ("HEIF", 1 + (name == "two"), name == "rotated")


def test_a_transparent_heic_is_composited_on_white() -> None:
    assert (pixels(HEIC["transparent"])[:, :40] > 250).all()
    assert decode(HEIC["transparent"])[1].alpha


def test_an_avif_file_with_the_brand_of_the_container_is_decoded() -> None:
    data = file(picture(64, 48), "AVIF")
    assert sniff(data) == "AVIF"
    renamed = data[:8] + b"mif1" + data[12:]
    assert sniff(renamed) == "HEIF"
    assert (pixels(renamed) == pixels(data)).all()
    assert decode(renamed)[1].format == "AVIF"


def test_the_largest_picture_of_an_icon_is_decoded() -> None:
    data = file(picture(64, 48), "ICO", sizes=[(16, 16), (64, 48)])
    assert (pixels(data) == np.asarray(picture(64, 48))).all()


def test_the_first_photo_of_a_multi_picture_jpeg_is_decoded() -> None:
    data = file(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "red")])
    assert np.abs(pixels(data).astype(int) - RGB).mean() < 30
    assert decode(data)[1].frames == 2


@pytest.mark.parametrize("resample", ["bicubic", "lanczos", "bilinear"])
def test_the_image_is_resized_without_keeping_its_aspect_ratio(resample: str) -> None:
    spec = ImageSpec(height=20, width=10, resample=resample)  # type: ignore[arg-type]
    found, info = load_pixels(PNG, spec)
    assert found.shape == (20, 10, 3)
    assert found.dtype == np.uint8
    assert (found == np.asarray(picture().resize((10, 20), Image.Resampling[resample.upper()]))).all()
    assert (info.width, info.height) == (WIDTH, HEIGHT), "the size of the file, not of the model's pixels"
