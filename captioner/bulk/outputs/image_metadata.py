"""The caption in an image's own metadata. Pixels, and all metadata without a caption, stay byte for byte.

EXIF (ImageDescription, XPComment) and XMP (dc:description, AltTextAccessibility) are always written. The caption of
IPTC (2:120) is written if there is one: no place may keep an older caption, because programs prefer different ones.
"""

from __future__ import annotations

from captioner.bulk.outputs import containers, exif, iptc, xmp
from captioner.bulk.outputs.boilerplate import own_words
from captioner.errors import OutputRefused


def description(data: bytes) -> str | None:
    """Return the caption in EXIF, XMP and IPTC; None without one, for boilerplate, and for formats without metadata.

    Captions that differ are joined by a blank.
    """
    found: list[str | None] = []
    for read in (_exif, _xmp, _iptc):
        try:
            found += read(data)
        except OutputRefused:  # a broken block holds no caption
            continue
    texts = list(dict.fromkeys(text for text in map(own_words, found) if text))
    distinct = [text for text in texts if not any(text in other for other in texts if other != text)]
    return " ".join(distinct) or None


def with_description(data: bytes, text: str) -> bytes:
    """Return the file with `text` as its caption in every place.

    Raises OutputRefused for other formats, for a broken EXIF block, and for a block too large for a JPEG segment.
    """
    block = containers.block(data, "exif")
    data = containers.with_block(data, "exif", exif.with_description(exif.EMPTY if block is None else block, text))
    packet = containers.block(data, "xmp")
    try:
        packet = xmp.with_description(packet, text)
    except OutputRefused:
        pass  # a broken packet holds no caption, and stays as it is
    else:
        data = containers.with_block(data, "xmp", packet)
    datasets = containers.block(data, "iptc")
    if datasets is not None and iptc.description(datasets) is not None:
        data = containers.with_block(data, "iptc", iptc.with_description(datasets, text))
    return data


def _exif(data: bytes) -> list[str]:
    block = containers.block(data, "exif")
    return [] if block is None else exif.descriptions(block)


def _xmp(data: bytes) -> list[str | None]:
    block = containers.block(data, "xmp")
    return [] if block is None else [xmp.description(block)]


def _iptc(data: bytes) -> list[str | None]:
    block = containers.block(data, "iptc")
    return [] if block is None else [iptc.description(block)]
