"""Where JPEG, PNG, WebP and TIFF files hold metadata. A block is replaced without touching any other byte.

Blocks: `exif` (a TIFF directory), `xmp` (an XML packet) and `iptc` (IPTC-IIM datasets).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

from captioner.bulk.outputs import exif, iptc
from captioner.errors import OutputRefused
from captioner.image.formats import sniff

Kind = Literal["exif", "xmp", "iptc"]

_JPEG_HEADS = {"exif": b"Exif\x00\x00", "xmp": b"http://ns.adobe.com/xap/1.0/\x00", "iptc": b"Photoshop 3.0\x00"}
_JPEG_MARKERS = {"exif": 0xE1, "xmp": 0xE1, "iptc": 0xED}
_STANDALONE = (0x01, *range(0xD0, 0xD8))  # JPEG markers without a length
_SOS, _EOI, _APP0 = 0xDA, 0xD9, 0xE0
_PNG_KINDS = {"exif": b"eXIf", "xmp": b"iTXt"}
_PNG_XMP = b"XML:com.adobe.xmp\x00\x00\x00\x00\x00"  # neither compressed nor in a language
_WEBP_KINDS = {"exif": b"EXIF", "xmp": b"XMP "}
_WEBP_FLAGS = {"exif": 0x08, "xmp": 0x04}
_TIFF_TAGS = {"xmp": 0x02BC, "iptc": 0x83BB}
_TIFF_RESOURCES = 0x8649
WRITABLE = ("JPEG", "PNG", "WEBP", "TIFF")


def block(data: bytes, kind: Kind) -> bytes | None:
    """Return a block of the file; None if it has none, or is of another format."""
    file_format, found = sniff(data), None
    if file_format == "JPEG":
        _, start, end = _in_jpeg(data, kind)
        found = data[start + 4 + len(_JPEG_HEADS[kind]) : end] if end > start else None
        found = iptc.datasets_in(found) if kind == "iptc" and found is not None else found
    elif file_format == "PNG":
        start, end = _in_png(data, kind)
        found = data[start + 8 + (len(_PNG_XMP) if kind == "xmp" else 0) : end - 4] if end > start else None
    elif file_format == "WEBP":
        start, end, size = _in_webp(data, kind)
        # Some programs write the head of a JPEG's EXIF into WebP.
        found = data[start + 8 : start + 8 + size].removeprefix(_JPEG_HEADS["exif"]) if end > start else None
    elif file_format == "TIFF" and not _is_big_tiff(data):
        found = _in_tiff(data, kind)
    return found


def with_block(data: bytes, kind: Kind, new: bytes) -> bytes:
    """Return the file with another block. Its `iptc` can only be replaced, not added.

    Raises OutputRefused for another format, and for a block too large for a JPEG segment.
    """
    file_format = sniff(data)
    if file_format == "JPEG":
        return _with_jpeg_block(data, kind, new)
    if file_format == "PNG":
        start, end = _in_png(data, kind)
        chunk = _PNG_KINDS[kind] + (_PNG_XMP if kind == "xmp" else b"") + new
        crc = struct.pack(">I", zlib.crc32(chunk))
        return b"".join((data[:start], struct.pack(">I", len(chunk) - 4), chunk, crc, data[end:]))
    if file_format == "WEBP":
        return _with_webp_block(data, kind, new)
    if file_format == "TIFF" and not _is_big_tiff(data):
        if kind == "exif":
            return new
        if kind == "iptc" and exif.value(data, _TIFF_TAGS[kind]) is None:
            resources = exif.value(data, _TIFF_RESOURCES) or b""
            return exif.with_value(data, _TIFF_RESOURCES, iptc.with_datasets(resources, new))
        return exif.with_value(data, _TIFF_TAGS[kind], new)
    raise OutputRefused("a caption is written into JPEG, PNG, WebP and TIFF; use --to xmp or txt for other formats")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
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


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the chunks of a PNG."""
    start = 8  # after the signature
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, start + 12 + length
        start += 12 + length


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and content size of the chunks of a WebP. A chunk ends at an even offset."""
    start = 12  # after RIFF, size, WEBP
    while start + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, start)
        yield kind, start, size
        start += 8 + size + size % 2


def _in_jpeg(data: bytes, kind: Kind) -> tuple[int, int, int]:
    """Return where a new block goes, and start and end of the segment with the old one; both are equal if none."""
    insert_at, head = 2, _JPEG_HEADS[kind]
    for marker, start, end in jpeg_segments(data):
        content = data[start + 4 : end]
        is_own = marker == _JPEG_MARKERS[kind] and content.startswith(head)
        if is_own and (kind != "iptc" or iptc.datasets_in(content[len(head) :]) is not None):
            return start, start, end
        # The JFIF segment must stay first, and EXIF comes before XMP.
        if (marker == _APP0 and start == 2) or content.startswith(_JPEG_HEADS["exif"]):
            insert_at = end if kind == "xmp" or marker == _APP0 else insert_at
    return insert_at, insert_at, insert_at


def _with_jpeg_block(data: bytes, kind: Kind, new: bytes) -> bytes:
    _, start, end = _in_jpeg(data, kind)
    head = _JPEG_HEADS[kind]
    if kind == "iptc":
        new = iptc.with_datasets(data[start + 4 + len(head) : end], new)
    size = len(head) + len(new) + 2
    if size > 0xFFFF:
        raise OutputRefused(f"the {kind.upper()} block would have {size - 2} bytes; a JPEG segment holds 65533")
    return b"".join((data[:start], struct.pack(">BBH", 0xFF, _JPEG_MARKERS[kind], size), head, new, data[end:]))


def _in_png(data: bytes, kind: Kind) -> tuple[int, int]:
    """Return start and end of the chunk with the block; both are where a new one goes if there is none."""
    if kind in _PNG_KINDS:
        for each, start, end in png_chunks(data):
            content = data[start + 8 : min(end, start + 8 + len(_PNG_XMP))]
            if each == _PNG_KINDS[kind] and (kind == "exif" or content == _PNG_XMP):
                return start, end
    return 33, 33  # after the header


def _in_webp(data: bytes, kind: Kind) -> tuple[int, int, int]:
    """Return start, end and content size of the chunk with the block; without one, the end of the file."""
    wanted, last = _WEBP_KINDS.get(kind), 12
    for each, start, size in webp_chunks(data):
        last = min(start + 8 + size + size % 2, len(data))
        if each == wanted:
            return start, last, size
    return last, last, 0


def _with_webp_block(data: bytes, kind: Kind, new: bytes) -> bytes:
    start, end, _ = _in_webp(data, kind)
    chunk = struct.pack("<4sI", _WEBP_KINDS[kind], len(new)) + new + b"\x00" * (len(new) % 2)
    pad = b"\x00" * (start % 2)  # the last chunk may lack its pad byte
    chunks = bytearray(data[12:start] + pad + chunk + data[end:])
    if chunks[:4] != b"VP8X":
        chunks[:0] = _extended_header(bytes(chunks))
    chunks[8] |= _WEBP_FLAGS[kind]
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + bytes(chunks)


def _extended_header(chunks: bytes) -> bytes:
    """Return the VP8X chunk, which a WebP with metadata needs, for a simple file with these chunks."""
    alpha = 0
    if chunks[:4] == b"VP8L" and len(chunks) >= 13:
        bits = int.from_bytes(chunks[9:13], "little")
        width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, bits >> 28 & 1
    elif chunks[:4] == b"VP8 " and len(chunks) >= 18:
        width, height = (int.from_bytes(chunks[at : at + 2], "little") % 0x4000 - 1 for at in (14, 16))
    else:
        raise OutputRefused("the WebP file is broken; the image was left unchanged")
    size = max(width, 0).to_bytes(3, "little") + max(height, 0).to_bytes(3, "little")
    return struct.pack("<4sIBxxx", b"VP8X", 10, alpha << 4) + size


def _in_tiff(data: bytes, kind: Kind) -> bytes | None:
    if kind == "exif":
        return data
    found = exif.value(data, _TIFF_TAGS[kind])
    if kind == "iptc" and found is None and (resources := exif.value(data, _TIFF_RESOURCES)) is not None:
        return iptc.datasets_in(resources)
    return found


def _is_big_tiff(data: bytes) -> bool:
    return data[:4] in (b"II+\x00", b"MM\x00+")
