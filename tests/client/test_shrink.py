"""Images over the server's limits are shrunk before they are sent; all others are sent as they are."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioner.bulk.sources.item import Item, load
from captioner.client import Client, shrink
from captioner.client.shrink import Shrunk, read_within_limits, shrink_to_limits
from captioner.errors import ImageTooLarge
from captioner.examples import PHOTOS
from captioner.wire import MAX_IMAGE_BYTES
from tests.support.pages import PHOTO
from tests.support.served import ROOT, Served

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def photo(width: int, height: int) -> Image.Image:
    return Image.open(PHOTO).convert("RGB").resize((width, height))


def noise(width: int, height: int, channels: int) -> Image.Image:
    """An image that no format compresses."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8))


WIDE = encoded(photo(17_000, 400), "JPEG")
HEAVY = encoded(noise(2800, 2600, 3), "PNG")  # 20.8 MiB, with sides and pixels within the limits


@pytest.mark.parametrize("path", PHOTOS)
def test_an_image_within_the_limits_is_sent_as_it_is(path: Path) -> None:
    data = path.read_bytes()
    assert shrink_to_limits(data) is data
    assert read_within_limits(path) == data


@pytest.mark.parametrize("data", [b"not an image", base64.b64encode(WIDE), WIDE[:200], b"RIFF\0\0\0\0WEBP", b""])
def test_what_cannot_be_decoded_here_is_left_to_the_server(data: bytes) -> None:
    assert shrink_to_limits(data) is data


def test_an_image_that_is_too_wide_becomes_smaller_in_proportion() -> None:
    smaller = shrink_to_limits(WIDE)
    assert isinstance(smaller, Shrunk)
    assert smaller.original == f"17000x400 px, {len(WIDE) / 2**20:.1f} MiB"
    assert decoded(smaller).size == (4096, 96)


def test_an_image_of_too_many_bytes_is_encoded_again_and_never_upscaled() -> None:
    assert len(HEAVY) > MAX_IMAGE_BYTES
    smaller = decoded(shrink_to_limits(HEAVY))
    assert (smaller.format, smaller.size) == ("JPEG", (2800, 2600))


def test_an_image_of_too_many_pixels_is_shrunk_with_little_memory() -> None:
    data = encoded(Image.new("L", (12_000, 9_000), 90), "JPEG")
    smaller = decoded(shrink_to_limits(data))
    assert smaller.size == (4096, 3072) and smaller.mode == "L"


def test_transparency_is_kept_within_the_limit_of_bytes() -> None:
    image = noise(4200, 1300, 4)
    smaller = shrink_to_limits(encoded(image, "PNG", compress_level=1))
    assert len(smaller) <= MAX_IMAGE_BYTES
    assert decoded(smaller).mode == "RGBA" and decoded(smaller).format == "PNG"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_shrunk_copy_is_shown_upright_and_in_the_same_colors(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrink, "MAX_SIDE_PX", 3000)  # formats have limits of their own
    monkeypatch.setattr(shrink, "TARGET_SIDE_PX", 1000)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo(3200, 1600)
    data = encoded(stored, file_format, exif=exif, icc_profile=SRGB, quality=95)
    smaller = decoded(shrink_to_limits(data))
    orientation = smaller.getexif().get(0x0112, 1)
    upright = smaller.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else smaller
    assert upright.size == (500, 1000)
    expected = stored.transpose(Image.Transpose.ROTATE_270).resize(upright.size)
    assert np.abs(np.asarray(upright, float) - np.asarray(expected, float)).mean() < 3
    assert smaller.info["icc_profile"] == SRGB


@pytest.mark.parametrize(
    ("mode", "file_format", "sent"),
    [
        ("CMYK", "JPEG", "CMYK"),
        ("CMYK", "TIFF", "CMYK"),
        ("L", "PNG", "L"),
        ("1", "PNG", "L"),
        ("LA", "PNG", "RGBA"),
        ("P", "GIF", "RGB"),
        ("RGB", "BMP", "RGB"),
        ("I;16", "PNG", "L"),
    ],
)
def test_every_mode_keeps_its_look(mode: str, file_format: str, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "MAX_SIDE_PX", 300)
    monkeypatch.setattr(shrink, "TARGET_SIDE_PX", 200)
    gray = photo(400, 300).convert("L")
    image = (
        photo(400, 300).convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(gray).astype("uint16") * 257)
    )
    smaller = decoded(shrink_to_limits(encoded(image, file_format)))
    assert smaller.mode == sent and smaller.size == (200, 150)
    expected = np.asarray(gray.resize((200, 150)), float)
    assert np.abs(np.asarray(smaller.convert("L"), float) - expected).mean() < (20 if mode == "1" else 6)


def png_header(width: int, height: int) -> bytes:
    """A PNG file of one row that states any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(width)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(30_000, 30_000), (17_000, 10_600), (60_000, 9)])
def test_a_decompression_bomb_and_a_strip_are_not_decoded(size: tuple[int, int]) -> None:
    data = png_header(*size)
    tracemalloc.start()
    assert shrink_to_limits(data) is data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_file_of_any_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(shrink.MAX_SOURCE_BYTES + 1)
    with pytest.raises(ImageTooLarge, match=r"256\.0 MiB; the limit is 20 MiB"):
        read_within_limits(path)
    with pytest.raises(ImageTooLarge):
        load(Item("huge.jpg", path))


def test_without_pillow_the_error_is_the_servers(tmp_path: Path) -> None:
    path = tmp_path / "heavy.png"
    path.write_bytes(HEAVY)
    code = f"""
import sys
sys.modules["PIL"] = None
from captioner.client import Client
from captioner.errors import ImageTooLarge
with Client("127.0.0.1:9") as client:
    for image in ({str(path)!r}, open({str(path)!r}, "rb").read()):
        try:
            client.caption(image)
        except ImageTooLarge as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["20.8 MiB; the limit is 20 MiB"] * 2


def test_without_shrinking_a_large_file_is_refused_and_pillow_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "heavy.png"
    path.write_bytes(HEAVY)
    code = f"""
import sys
from captioner.client import Client
from captioner.errors import ImageTooLarge
with Client("127.0.0.1:9", shrink=False) as client:
    for image in ({str(path)!r}, open({str(path)!r}, "rb").read()):
        try:
            client.caption(image)
        except ImageTooLarge as error:
            print(error, "PIL" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["20.8 MiB; the limit is 20 MiB False"] * 2


@pytest.mark.triton
def test_a_client_captions_what_is_over_the_limits_and_says_so(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "heavy.png"
    path.write_bytes(HEAVY)
    with Client(served.grpc) as client, Client(served.grpc, shrink=False) as strict:
        for image in (WIDE, path):
            caption = client.caption(image)
            assert caption.text and caption.details.image.shrunk_from
        assert caption.details.image.shrunk_from == "2800x2600 px, 20.8 MiB"
        assert client.caption(PHOTO).details.image.shrunk_from == ""
        for image in (WIDE, HEAVY):
            with pytest.raises(ImageTooLarge):
                strict.caption(image)


@pytest.mark.triton
def test_a_job_and_the_command_caption_what_is_over_the_limits_and_say_so(served: Served, tmp_path: Path) -> None:
    (tmp_path / "wide.jpg").write_bytes(WIDE)
    (tmp_path / "heavy.png").write_bytes(HEAVY)
    command = [sys.executable, "-m", "captioner.cli", "caption", "--server", served.grpc]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)

    out = tmp_path / "captions.jsonl"
    done = run(str(tmp_path), "--to", "jsonl", "--out", str(out))
    assert "heavy.png: shrunk from 2800x2600 px, 20.8 MiB before it was captioned" in done.stderr
    lines = {line["file"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert all(line["caption"] for line in lines.values())
    assert lines["wide.jpg"]["details"]["image"]["shrunk_from"].startswith("17000x400 px")
    assert "wide.jpg: shrunk from 17000x400 px" in run(str(tmp_path / "wide.jpg")).stderr
