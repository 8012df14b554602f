"""Shrink an image that is over the server's limits before it is sent. Images within the limits are sent as they are.

Pillow is imported only when an image is looked at. Without Pillow, or for a file that it cannot read, the image is not
changed, and the error is the server's.
"""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.image.formats import sniff
from captioner.image.limits import MAX_PIXELS, MAX_SIDE_PX, MIN_SIDE_PX, check_file_size
from captioner.wire import MAX_IMAGE_BYTES, Details

if TYPE_CHECKING:
    from PIL import Image

MAX_SOURCE_BYTES = 256 * 2**20  # larger files are refused unread
MAX_SOURCE_PIXELS = 178_000_000  # up to 720 MB while decoding; Pillow's own limit against decompression bombs
TARGET_SIDE_PX = 4096  # of the copy; models see at most 2048
JPEG_QUALITY = 92

_ORIENTATION = 0x0112  # the EXIF tag
_COLOR_SPACES = {"L": b"GRAY", "CMYK": b"CMYK"}  # the color space of a mode, as profiles name it; else RGB
_large_image = threading.RLock()  # one large image is in memory at a time


class Shrunk(bytes):
    """The smaller copy of an image file."""

    original: str  # the size of the file that it was made from, such as "20000x1000 px, 0.7 MiB"


def read_within_limits(image: bytes | str | PathLike[str]) -> bytes:
    """Return the bytes to send for a file's bytes or path: a Shrunk copy if the image is over the server's limits.

    Raises ImageMissing or ImageTooLarge, and OSError for a path that cannot be read.
    """
    if isinstance(image, bytes):
        file = shrink_to_limits(image)
    else:
        size = Path(image).stat().st_size
        if size > MAX_SOURCE_BYTES:
            check_file_size(size)
        with large_image_lock(size):
            file = shrink_to_limits(Path(image).read_bytes())
    check_file_size(len(file))
    return file


def large_image_lock(size: int) -> threading.RLock | nullcontext[None]:
    """Return the lock under which a file of `size` bytes is read; a file within the limit needs none."""
    return _large_image if size > MAX_IMAGE_BYTES else nullcontext()


def shrink_to_limits(data: bytes) -> bytes:
    """Return `data` if the server takes it or if it cannot be shrunk, otherwise a Shrunk copy."""
    file_format = sniff(data)
    if file_format is None:
        return data
    try:
        from PIL import Image
    except ImportError:
        return data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns above half of MAX_SOURCE_PIXELS
            with Image.open(io.BytesIO(data), formats=[file_format]) as image:
                width, height = image.size
                within = len(data) <= MAX_IMAGE_BYTES and max(width, height) <= MAX_SIDE_PX
                if (within and width * height <= MAX_PIXELS) or width * height > MAX_SOURCE_PIXELS:
                    return data
                with _large_image:
                    smaller = _shrunk(image)
    except Exception:  # Pillow's decoders raise a dozen unrelated types; the server names what is wrong
        return data
    if smaller is not None:
        smaller.original = f"{width}x{height} px, {len(data) / 2**20:.1f} MiB"
    return smaller or data


def with_original_size(details: Details, image: object) -> Details:
    """Return `details` with the size of the original, if `image` is Shrunk."""
    if not isinstance(image, Shrunk):
        return details
    return replace(details, image=replace(details.image, shrunk_from=image.original))


def _shrunk(image: Image.Image) -> Shrunk | None:
    """Return the copy: upright as the original is, with its color profile. None if a side would be too short."""
    from PIL import Image

    longest, shortest = max(image.size), min(image.size)
    scale = min(1.0, max(TARGET_SIDE_PX / longest, MIN_SIDE_PX / shortest))
    if longest * scale > MAX_SIDE_PX:
        return None
    size = [round(side * scale) for side in image.size]
    image.draft(None, (size[0], size[1]))  # a JPEG decodes at a half, a quarter or an eighth of its size
    image.load()
    exif = Image.Exif()
    if orientation := image.getexif().get(_ORIENTATION):
        exif[_ORIENTATION] = orientation
    profile = image.info.get("icc_profile")
    image = _sendable(image)
    if profile and profile[16:20] != _COLOR_SPACES.get(image.mode, b"RGB "):
        profile = None
    if max(image.size) != max(size):
        # Pillow has rotated a TIFF upright when it loaded it.
        size = size if (image.width < image.height) == (size[0] < size[1]) else size[::-1]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    while True:
        file = io.BytesIO()
        options = {"icc_profile": profile, "exif": exif}
        if image.mode == "RGBA":
            image.save(file, "PNG", **options)
        else:
            image.save(file, "JPEG", quality=JPEG_QUALITY, **options)
        if file.tell() <= MAX_IMAGE_BYTES:
            return Shrunk(file.getvalue())
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)


def _sendable(image: Image.Image) -> Image.Image:
    """Return the image in a mode that JPEG holds, or in RGBA if it has transparency."""
    if image.mode.startswith("I;16"):  # convert() would clip every value above 255 to white
        return image.point(lambda value: value / 257).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")
