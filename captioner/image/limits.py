"""The limits of an image: file size, pixels on a side and in all, time and memory to decode it.

This module does not import Pillow.
"""

from __future__ import annotations

from captioner.errors import ImageMissing, ImageTooLarge, ImageTooSmall
from captioner.wire import MAX_IMAGE_BYTES

MIN_SIDE_PX = 8
MAX_SIDE_PX = 16_384
MAX_PIXELS = 100_000_000  # 300 MB of RGB while decoding
# The legal files that take the most time and memory (`docs/reliability.md`) need a third and two thirds of these.
DECODE_SECONDS = 20  # of one core
DECODER_BYTES = 3 * 2**30


def check_file_size(size: int) -> None:
    """Raise ImageMissing for 0 bytes and ImageTooLarge above MAX_IMAGE_BYTES."""
    if size == 0:
        raise ImageMissing("the image is empty (0 bytes)")
    if size > MAX_IMAGE_BYTES:
        raise ImageTooLarge(f"{size / 2**20:.1f} MiB; the limit is {MAX_IMAGE_BYTES >> 20} MiB")


def check_dimensions(width: int, height: int) -> None:
    """Raise ImageTooSmall or ImageTooLarge for a size in pixels outside the limits."""
    if min(width, height) < MIN_SIDE_PX:
        raise ImageTooSmall(f"{width}x{height} px; each side must be at least {MIN_SIDE_PX} px")
    if max(width, height) > MAX_SIDE_PX:
        raise ImageTooLarge(f"{width}x{height} px; each side must be at most {MAX_SIDE_PX} px")
    if width * height > MAX_PIXELS:
        megapixels = width * height / 1e6
        raise ImageTooLarge(f"{width}x{height} px is {megapixels:.0f} MP; the limit is {MAX_PIXELS // 10**6} MP")
