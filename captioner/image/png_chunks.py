"""Reduce a PNG file to the chunks that its pixels need. It decodes no pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf")
_PROFILE = b"iCCP"
_MAX_PROFILE_BYTES = 2**20  # Pillow refuses a file whose profile is larger


def essential(data: bytes) -> bytes:
    """Return a PNG file without its text and other side information, and without a profile of more than 1 MiB.

    Pillow refuses a file whose text is large or damaged, although the pixels do not need it.
    """
    kept = [data[:8]]
    for name, start, end in _chunks(data):
        if name in _PIXELS or (name == _PROFILE and _is_small(data[start + 8 : end - 4])):
            kept.append(data[start:end])
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and end of every chunk. The last one ends where a truncated file ends."""
    start = 8
    while start + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = min(start + 12 + length, len(data))
        yield name, start, end
        start = end


def _is_small(body: bytes) -> bool:
    """Return whether the profile in the body of an iCCP chunk (name, 0, method, zlib stream) has at most 1 MiB."""
    try:
        unpacked = zlib.decompressobj().decompress(body[body.index(b"\0") + 2 :], _MAX_PROFILE_BYTES + 1)
    except (ValueError, zlib.error):
        return False
    return len(unpacked) <= _MAX_PROFILE_BYTES
