"""Colors are converted to sRGB by the file's own profile, and transparent pictures stay visible."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from captioner.image.colors import MAX_PROFILE_BYTES
from captioner.image.decode import decode
from tests.image.pictures import GRAY, NOISE, cmyk_profile, file, picture, pixels, rgb_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
SWAPPED = rgb_profile("GRB")


def converted(image: Image.Image, icc: bytes) -> Image.Image:
    """What ImageCms makes of a picture."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    result = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
    assert result is not None
    return result


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_an_embedded_profile_is_applied(file_format: str) -> None:
    plain = file(NOISE, file_format)
    found = pixels(file(NOISE, file_format, icc_profile=SWAPPED)).astype(int)
    expected = np.asarray(converted(Image.fromarray(pixels(plain)), SWAPPED)).astype(int)
    assert np.abs(found - expected).max() <= 2
    assert np.abs(found - pixels(plain)).max() > 100, "the profile changes nothing"


@pytest.mark.parametrize("icc", [SRGB.tobytes(), rgb_profile()], ids=["sRGB", "gamma 2.2"])
def test_a_profile_of_srgb_leaves_every_pixel_as_it_is(icc: bytes) -> None:
    if icc == SRGB.tobytes():
        assert (pixels(file(NOISE, "PNG", icc_profile=icc)) == np.asarray(NOISE)).all()
    else:  # its curve differs in dark colors
        assert np.abs(pixels(file(NOISE, "PNG", icc_profile=icc)).astype(int) - np.asarray(NOISE)).max() < 12


@pytest.mark.parametrize(
    "icc",
    [b"x", SWAPPED[:100], SWAPPED[:200], b"\xff" * 3000, cmyk_profile(), SWAPPED + bytes(MAX_PROFILE_BYTES)],
    ids=["short", "header", "cut", "noise", "other channels", "large"],
)
@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "JPEG"])
def test_a_broken_profile_costs_nothing(file_format: str, icc: bytes) -> None:
    assert (pixels(file(NOISE, file_format, icc_profile=icc)) == pixels(file(NOISE, file_format))).all()


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_its_profile(file_format: str) -> None:
    magenta = Image.new("CMYK", (16, 16), (0, 255, 0, 0))
    data = file(magenta, file_format, icc_profile=cmyk_profile(), **({"quality": 100} if file_format == "JPEG" else {}))
    assert np.ptp(pixels(data)[0, 0]) <= 4, "gray, as the profile says"
    assert 100 < pixels(data)[0, 0, 0] < 140
    assert pixels(file(Image.new("CMYK", (16, 16)), file_format, icc_profile=cmyk_profile())).min() >= 253


def test_the_alpha_of_a_picture_with_a_profile_is_kept() -> None:
    image = picture().convert("RGBA")
    image.paste((9, 9, 9, 0), (0, 0, 12, 16))
    found = pixels(file(image, "PNG", icc_profile=SWAPPED))
    assert (found[:, :12] == 255).all()
    assert np.abs(found[:, 12:].astype(int) - np.asarray(converted(picture(), SWAPPED))[:, 12:]).max() <= 2


def test_gray_ignores_a_profile_of_colors() -> None:
    data = file(Image.fromarray(GRAY), "PNG", icc_profile=SWAPPED)
    assert (pixels(data) == GRAY[..., np.newaxis]).all()


def test_lab_is_converted() -> None:
    muted = picture().point(lambda level: 80 + level // 3)  # 8 bits of LAB do not hold the most saturated colors
    to_lab = ImageCms.buildTransform(SRGB, ImageCms.createProfile("LAB"), "RGB", "LAB")
    assert np.abs(pixels(file(to_lab.apply(muted), "TIFF")).astype(int) - np.asarray(muted)).max() <= 4


def drawing(color: str, ground: tuple[int, int, int, int]) -> Image.Image:
    """A disc on a ground."""
    image = Image.new("RGBA", (64, 64), ground)
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=color)
    return image


@pytest.mark.parametrize("color", ["white", "#f0f0f0", "#fff8e8"])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "AVIF"])
def test_a_white_drawing_on_a_transparent_ground_stays_visible(file_format: str, color: str) -> None:
    found = pixels(file(drawing(color, (255, 255, 255, 0)), file_format))
    assert found[32, 32].min() > 220
    assert found[0, 0].max() < 10


@pytest.mark.parametrize("color", ["black", "red", "yellow", "#c0c0c0"])
def test_any_other_drawing_on_a_transparent_ground_is_composited_on_white(color: str) -> None:
    found = pixels(file(drawing(color, (0, 0, 0, 0)), "PNG"))
    assert found[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "image",
    [Image.new("RGBA", (64, 64), (0, 0, 0, 0)), Image.new("RGBA", (64, 64), "white"), drawing("white", (255,) * 4)],
    ids=["all transparent", "all white", "opaque"],
)
def test_a_picture_without_a_hidden_part_is_composited_on_white(image: Image.Image) -> None:
    assert (pixels(file(image, "PNG")) == 255).all()


def test_a_white_card_with_text_and_transparent_corners_is_composited_on_white() -> None:
    image = Image.new("RGBA", (200, 100), "white")
    ImageDraw.Draw(image).text((40, 40), "a card with a line of text", fill="black")
    image.paste((0, 0, 0, 0), (0, 0, 6, 6))
    assert decode(file(image, "PNG"))[1].alpha
    assert pixels(file(image, "PNG"))[0, 0].tolist() == [255, 255, 255]
