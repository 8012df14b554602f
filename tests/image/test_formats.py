"""The table of image formats, and the wrappings in which a file may arrive."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

from captioner.errors import ImageFormatUnknown, ImageMissing, ImageTooLarge
from captioner.image.decode import decode, load_pixels
from captioner.image.formats import FORMATS, SUFFIXES, Format, is_image, sniff, unwrap
from captioner.image.limits import check_file_size
from captioner.image.spec import ImageSpec
from captioner.wire import MAX_IMAGE_BYTES
from tests.image.pictures import HEIGHT, PNG, RGB, WIDTH, picture

ROOT = Path(__file__).parents[2]
TEXT = base64.b64encode(PNG)


@pytest.mark.parametrize("image_format", FORMATS, ids=lambda each: each.name)
def test_pillows_file_of_every_format_is_recognized_and_decoded(image_format: Format, tmp_path: Path) -> None:
    for suffix in () if image_format.name == "HEIF" else image_format.suffixes:  # Pillow has no encoder of HEIC
        path = tmp_path / f"photo{suffix}"
        picture().save(path, sizes=[(WIDTH, HEIGHT)])  # of an icon; Pillow chooses the format by the suffix
        assert sniff(path.read_bytes()) == image_format.name
        image, info = decode(path.read_bytes())
        assert (info.format, image.size) == (image_format.name, (WIDTH, HEIGHT))
        assert Image.MIME[info.format] == image_format.mime


@pytest.mark.parametrize(
    "data", [b"GIF87a", b"MM\x00*", b"II+\x00", b"MM\x00+", b"RIFF\x01\xff\x00\x20WEBP", b"\0\0\0\x18ftypheic"]
)
def test_the_other_signatures_of_a_format_are_recognized(data: bytes) -> None:
    assert sniff(data) is not None
    assert sniff(data[:-1]) is None


def test_is_image_ignores_case_and_needs_a_suffix() -> None:
    assert all(is_image(f"a{suffix}") and is_image(f"A.B{suffix.upper()}") for suffix in SUFFIXES)
    assert not any(map(is_image, ["a", "jpg", "a.txt", "a.jpg.txt", "a.svg", ""]))


def test_no_other_module_lists_suffixes_mime_types_or_signatures() -> None:
    magic = [magic for each in FORMATS for magic in each.magic]
    # EXIF blocks begin like a TIFF file, and two letters are not specific enough.
    signatures = [re.escape(repr(each)[2:-1]) for each in magic if len(each) > 2 and each[:2] not in (b"II", b"MM")]
    second_list = re.compile("|".join([r"\.(bmp|tiff?|jfif)\b", r"image/(bmp|tiff|gif)\b", *signatures]))
    table = ROOT / "captioner" / "image" / "formats.py"
    for path in (ROOT / "captioner").rglob("*.py"):
        assert path == table or not second_list.search(path.read_text("utf-8")), path


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
def test_every_wrapping_gives_the_same_file(data: bytes) -> None:
    assert unwrap(data) == PNG
    assert (load_pixels(data, ImageSpec(HEIGHT, WIDTH, "bilinear"))[0] == RGB).all()


@pytest.mark.parametrize(
    "data", [b"data:image/png," + PNG, b"data:image/png;base64", b"data:", b"data:image/png;base64,@@@@", TEXT[:-2]]
)
def test_a_broken_wrapping_is_refused(data: bytes) -> None:
    with pytest.raises(ImageFormatUnknown):
        decode(unwrap(data))


@pytest.mark.parametrize("data", [b"x", b"hello", b"\x00" * 100, b"%PDF-1.7", b"<svg></svg>", b"RIFF\0\0\0\0WAVE"])
def test_the_error_for_an_unknown_format_shows_the_first_bytes_and_the_formats(data: bytes) -> None:
    with pytest.raises(ImageFormatUnknown) as caught:
        load_pixels(data, ImageSpec(8, 8, "bilinear"))
    assert repr(data[:4])[2:-1] in str(caught.value)
    assert all(each.name in str(caught.value) for each in FORMATS)


@pytest.mark.parametrize("data", [b"", b"  \n", b" "])
def test_an_empty_file_is_missing(data: bytes) -> None:
    with pytest.raises(ImageMissing):
        load_pixels(data, ImageSpec(8, 8, "bilinear"))


def test_the_limit_on_bytes_is_exact_and_named() -> None:
    check_file_size(MAX_IMAGE_BYTES)
    with pytest.raises(ImageTooLarge, match=r"21\.0 MiB; the limit is 20 MiB"):
        check_file_size(MAX_IMAGE_BYTES + 2**20)
    with pytest.raises(ImageTooLarge):
        unwrap(PNG + bytes(MAX_IMAGE_BYTES + 1 - len(PNG)))
    largest = unwrap(base64.encodebytes(PNG + bytes(MAX_IMAGE_BYTES - len(PNG))))
    assert len(largest) == MAX_IMAGE_BYTES, "the limit is on the file, and base64 text is longer"
