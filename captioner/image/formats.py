"""The supported image formats: one table of MIME types, suffixes and magic bytes.

The decoder, the client, bulk jobs and (as JSON) the page use the same tables. This module does not import Pillow.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass

from captioner.errors import ImageFormatUnknown, ImageMissing
from captioner.image.limits import check_file_size

_BASE64_BYTES = 4 / 3 * 80 / 76  # maximum number of base64 characters per byte, with line ends


@dataclass(frozen=True)
class Format:
    """One image format. `name` is Pillow's; a file of this format starts with one of `magic`, where ? is any byte."""

    name: str
    mime: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
FORMATS = (
    Format("JPEG", "image/jpeg", (".jpg", ".jpeg", ".jpe", ".jfif"), (b"\xff\xd8\xff",)),
    Format("PNG", "image/png", (".png",), (b"\x89PNG\r\n\x1a\n",)),
    Format("WEBP", "image/webp", (".webp",), (b"RIFF????WEBP",)),
    Format("GIF", "image/gif", (".gif",), (b"GIF87a", b"GIF89a")),
    Format("BMP", "image/bmp", (".bmp",), (b"BM",)),
    Format("TIFF", "image/tiff", (".tif", ".tiff"), (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")),
    Format("AVIF", "image/avif", (".avif",), (b"????ftypavif", b"????ftypavis")),
    # The brands mif1 and msf1 may also contain AVIF, which the decoder tries first.
    Format("HEIF", "image/heif", (".heic", ".heif", ".hif"), tuple(b"????ftyp" + brand for brand in _HEIF_BRANDS)),
    Format("ICO", "image/x-icon", (".ico",), (b"\x00\x00\x01\x00",)),
)
SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)
# Of a NAS or of Windows: what they hold are copies, not the user's images.
SYSTEM_FOLDERS = ("@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN")
NAMES = ", ".join(each.name for each in FORMATS)
_ANY = ord("?")


def is_image(name: str) -> bool:
    """Return whether a file name has an image suffix."""
    return name.lower().endswith(SUFFIXES)


def sniff(data: bytes) -> str | None:
    """Return the Pillow name of the format that `data` starts like, or None."""
    for each in FORMATS:
        if any(_starts(data, magic) for magic in each.magic):
            return each.name
    return None


def unwrap(data: bytes) -> bytes:
    """Return the image file inside `data`: a file's bytes, base64 text, or a data URL.

    JSON endpoints cannot carry bytes. Bytes that are none of these are returned unchanged. Raises ImageMissing,
    ImageTooLarge, or ImageFormatUnknown for a data URL without valid base64.
    """
    if sniff(data) is not None:
        check_file_size(len(data))
        return data
    check_wrapped_size(len(data))
    text = data.strip()
    if not text:
        raise ImageMissing("the image is empty")
    is_url = text[:5].lower() == b"data:"
    if is_url:
        head, comma, text = text.partition(b",")
        if not comma or not head.lower().endswith(b";base64"):
            raise ImageFormatUnknown(f"a data URL must hold base64; this one begins {first_bytes(head)}")
    try:
        file = base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        if is_url:
            raise ImageFormatUnknown(f"the data URL's base64 cannot be decoded: {error}") from None
        return data
    return file if is_url or sniff(file) is not None else data


def check_wrapped_size(size: int) -> None:
    """Raise ImageTooLarge for a number of bytes that exceeds the limit of a file even as base64 text."""
    check_file_size(math.ceil(size / _BASE64_BYTES))


def first_bytes(data: bytes) -> str:
    """Return the first bytes of `data` as text for an error message."""
    return repr(data[:12])[1:]


def _starts(data: bytes, magic: bytes) -> bool:
    head = data[: len(magic)]
    return len(head) == len(magic) and all(want in (byte, _ANY) for byte, want in zip(head, magic, strict=True))
