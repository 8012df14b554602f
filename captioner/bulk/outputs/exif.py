"""Read and write a caption in the EXIF of a JPEG or PNG. Pixels and all other metadata stay unchanged, byte for byte.

The old EXIF block is kept, because maker notes hold offsets into it. A new first directory is appended, with the old
entries, ImageDescription (UTF-8), and XPComment (UTF-16, which Windows shows).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from captioner.errors import OutputRefused
from captioner.image.formats import sniff

DESCRIPTION, XP_COMMENT = 0x010E, 0x9C9C
_ASCII, _BYTE = 2, 1
_EMPTY = b"MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"
_EXIF = b"Exif\x00\x00"
_STANDALONE = (0x01, *range(0xD0, 0xD8))  # JPEG markers without a length
_SOS, _EOI, _APP0, _APP1 = 0xDA, 0xD9, 0xE0, 0xE1


def description(data: bytes) -> str | None:
    """Return the file's ImageDescription; None if it is missing or blank."""
    block, _, _ = _find(data)
    if block is None:
        return None
    order, entries, _ = _directory(block)
    for tag, _, count, value in entries:
        if tag == DESCRIPTION:
            start = struct.unpack(order + "I", value)[0]
            text = value[:count] if count <= 4 else block[start : start + count]
            return text.rstrip(b"\x00").decode("utf-8", "replace").strip() or None
    return None


def with_description(data: bytes, text: str) -> bytes:
    """Return the file with `text` as its description.

    Raises OutputRefused for other formats, for a broken EXIF block, and for a block too large for a JPEG segment.
    """
    block, start, end = _find(data)
    block = _with_text(_EMPTY if block is None else block, text)
    if sniff(data) == "PNG":
        chunk = b"eXIf" + block
        return data[:start] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[end:]
    segment = _EXIF + block
    if len(segment) + 2 > 0xFFFF:
        raise OutputRefused(f"the EXIF block would have {len(segment)} bytes; a JPEG segment holds 65533")
    return data[:start] + struct.pack(">BBH", 0xFF, _APP1, len(segment) + 2) + segment + data[end:]


def _find(data: bytes) -> tuple[bytes | None, int, int]:
    """Return the EXIF block or None, and the start and end of the bytes that a new block replaces."""
    file_format = sniff(data)
    if file_format == "PNG":
        insert_at = 33  # after the header
        for kind, start, end in _chunks(data):
            if kind == b"eXIf":
                return data[start + 8 : end - 4], start, end
        return None, insert_at, insert_at
    if file_format == "JPEG":
        insert_at = 2
        for marker, start, end in _segments(data):
            if marker == _APP1 and data[start + 4 : start + 10] == _EXIF:
                return data[start + 10 : end], start, end
            if marker == _APP0 and start == 2:
                insert_at = end  # the JFIF segment must stay first
        return None, insert_at, insert_at
    raise OutputRefused("EXIF is written into JPEG and PNG; use --to xmp or txt for other formats")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the chunks of a PNG."""
    start = 8  # after the signature
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, start + 12 + length
        start += 12 + length


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the segments of a JPEG before its pixels, without fill bytes."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker in (_SOS, _EOI):
            return
        if marker == 0xFF:
            start += 1
            continue
        end = start + 2 + (0 if marker in _STANDALONE else int.from_bytes(data[start + 2 : start + 4], "big"))
        yield marker, start, end
        start = end


def _directory(block: bytes) -> tuple[str, list[tuple[int, int, int, bytes]], bytes]:
    """Return byte order, first directory (entries of tag, type, count, value or offset), offset of the next one."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
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


def _with_text(block: bytes, text: str) -> bytes:
    """Return the block with a new first directory at its end; values longer than 4 bytes follow the directory."""
    order, entries, following = _directory(block)
    block += b"\x00" * (len(block) % 2)
    new = {
        DESCRIPTION: (_ASCII, text.replace("\x00", "").encode("utf-8", "replace") + b"\x00"),
        XP_COMMENT: (_BYTE, text.replace("\x00", "").encode("utf-16-le", "replace") + b"\x00\x00"),
    }
    kept = [entry for entry in entries if entry[0] not in new]
    values_at = len(block) + 2 + 12 * (len(kept) + len(new)) + 4
    values = b""
    for tag, (kind, value) in new.items():
        field = struct.pack(order + "I", values_at + len(values)) if len(value) > 4 else value.ljust(4, b"\x00")
        values += value + b"\x00" * (len(value) % 2) if len(value) > 4 else b""
        kept.append((tag, kind, len(value), field))
    directory = struct.pack(order + "H", len(kept))
    directory += b"".join(struct.pack(order + "HHI4s", *entry) for entry in sorted(kept))
    return block[:4] + struct.pack(order + "I", len(block)) + block[8:] + directory + following + values
