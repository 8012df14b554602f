"""The first directory of an EXIF block, which is also that of a TIFF file: read its texts, and write new ones.

The old block is kept, because maker notes and pixels are found by their offsets in it. A new first directory is
appended, with the old entries, ImageDescription (UTF-8), and XPComment (UTF-16, which Windows shows).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from captioner.errors import OutputRefused

DESCRIPTION, XP_COMMENT = 0x010E, 0x9C9C
EMPTY = b"MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"
_BYTE, _ASCII = 1, 2
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1}  # bytes of a value, by its type
_LITTLE_ENDIAN, _BIG_ENDIAN = b"II*\x00", b"MM\x00*"


def descriptions(block: bytes) -> list[str]:
    """Return ImageDescription and XPComment, as far as they are there."""
    found = []
    if (text := value(block, DESCRIPTION)) is not None:
        found.append(text.rstrip(b"\x00").decode("utf-8", "replace"))
    if (text := value(block, XP_COMMENT)) is not None:
        found.append(text.decode("utf-16-le", "replace").rstrip("\x00"))
    return found


def with_description(block: bytes, text: str) -> bytes:
    """Return the block with `text` as ImageDescription and XPComment."""
    text = text.replace("\x00", "")
    values = {
        DESCRIPTION: (_ASCII, text.encode("utf-8", "replace") + b"\x00"),
        XP_COMMENT: (_BYTE, text.encode("utf-16-le", "replace") + b"\x00\x00"),
    }
    return _with_values(block, values)


def value(block: bytes, tag: int) -> bytes | None:
    """Return the bytes of an entry of the first directory. Raises OutputRefused for a broken block."""
    order, entries, _ = _directory(block)
    for each, kind, count, field in entries:
        if each == tag:
            size = count * _SIZES.get(kind, 1)
            start = struct.unpack(order + "I", field)[0]
            return field[:size] if size <= len(field) else block[start : start + size]
    return None


def with_value(block: bytes, tag: int, data: bytes) -> bytes:
    """Return the block with `data` as the bytes of an entry of the first directory."""
    return _with_values(block, {tag: (_BYTE, data)})


def _directory(block: bytes) -> tuple[str, list[tuple[int, int, int, bytes]], bytes]:
    """Return byte order, first directory (entries of tag, type, count, value or offset), offset of the next one."""
    order = {_LITTLE_ENDIAN: "<", _BIG_ENDIAN: ">"}.get(block[:4])
    try:
        if order is None:
            raise struct.error
        (offset,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, offset)
        entries = [struct.unpack_from(order + "HHI4s", block, offset + 2 + 12 * number) for number in range(count)]
        (following,) = struct.unpack_from("4s", block, offset + 2 + 12 * count)
    except struct.error:
        raise OutputRefused("the EXIF block is broken; the image was left unchanged") from None
    return order, entries, following


def _with_values(block: bytes, new: Mapping[int, tuple[int, bytes]]) -> bytes:
    """Return the block with a new first directory at its end; values longer than 4 bytes follow the directory."""
    order, entries, following = _directory(block)
    directory_at = len(block) + len(block) % 2
    kept = [entry for entry in entries if entry[0] not in new]
    values_at = directory_at + 2 + 12 * (len(kept) + len(new)) + 4
    if values_at + sum(len(each) + 1 for _, each in new.values()) > 0xFFFFFFFF:
        raise OutputRefused("the file would be larger than 4 GiB, which its offsets cannot reach")
    values = b""
    for tag, (kind, data) in new.items():
        field = struct.pack(order + "I", values_at + len(values)) if len(data) > 4 else data.ljust(4, b"\x00")
        values += data + b"\x00" * (len(data) % 2) if len(data) > 4 else b""
        kept.append((tag, kind, len(data), field))
    directory = struct.pack(order + "H", len(kept))
    directory += b"".join(struct.pack(order + "HHI4s", *entry) for entry in sorted(kept))
    head = block[:4] + struct.pack(order + "I", directory_at)
    return b"".join((head, block[8:], b"\x00" * (directory_at - len(block)), directory, following, values))
