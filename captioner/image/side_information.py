"""Leave out parts of a file that its pixels do not need and that Pillow handles badly. It decodes no pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf")
_PROFILE_CHUNK = b"iCCP"
_MAX_PROFILE_BYTES = 2**20  # Pillow refuses a PNG file whose profile is larger
_GIF_EXTENSION, _GIF_COMMENT, _GIF_FRAME, _GIF_END = 0x21, 0xFE, 0x2C, 0x3B


def png_without_text(data: bytes) -> bytes:
    """Return a PNG file without its text and other side information, and without a profile of more than 1 MiB.

    Pillow refuses a file whose text is large or damaged.
    """
    kept = [data[:8]]
    for name, start, end in _chunks(data):
        if name in _PIXEL_CHUNKS or (name == _PROFILE_CHUNK and _is_small(data[start + 8 : end - 4])):
            kept.append(data[start:end])
    return b"".join(kept)


def gif_without_comments(data: bytes) -> bytes:
    """Return a GIF file without its comments, which Pillow joins in quadratic time."""
    kept, start = [], 0  # `start`: of the bytes since the last comment
    at = 13 + _color_table(data, 10)
    while at + 1 < len(data) and data[at] != _GIF_END:
        kind, label = data[at], data[at + 1]
        if kind == _GIF_EXTENSION:
            end = _after_blocks(data, at + 2)
            if label == _GIF_COMMENT:
                kept.append(data[start:at])
                start = end
        elif kind == _GIF_FRAME:
            end = _after_blocks(data, at + 11 + _color_table(data, at + 9))  # a descriptor, colors, the code size
        else:  # a byte that Pillow skips
            end = at + 1
        at = end
    return b"".join([*kept, data[start:]])


def _color_table(data: bytes, at: int) -> int:
    """Return the bytes of the color table that the flags at `at` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """Return the position after blocks of a length and that many bytes, which an empty block ends."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


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
