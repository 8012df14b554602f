"""The caption in IPTC-IIM datasets (2:120), and where Photoshop's image resources hold these datasets."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_CAPTION, _CHARACTER_SET = (2, 120), (1, 90)
_UTF8 = b"\x1b%G"
_MAX_BYTES = 2000  # of a caption, by the standard
_DATASETS, _DIGEST = 0x0404, 0x0425  # image resources


def description(datasets: bytes) -> str | None:
    """Return the caption; None if there is none."""
    text = next((datasets[start + 5 : end] for name, start, end in _datasets(datasets) if name == _CAPTION), None)
    if text is None:
        return None
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def with_description(datasets: bytes, text: str) -> bytes:
    """Return the datasets with `text` in place of the caption. There must be one."""
    is_utf8 = any(
        name == _CHARACTER_SET and datasets[start:end].endswith(_UTF8) for name, start, end in _datasets(datasets)
    )
    encoded = text.encode("utf-8" if is_utf8 else "latin-1", "replace")[:_MAX_BYTES]
    if is_utf8:
        encoded = encoded.decode("utf-8", "ignore").encode()  # the limit may have cut a character
    start, end = next((start, end) for name, start, end in _datasets(datasets) if name == _CAPTION)
    return datasets[:start] + struct.pack(">BBBH", 0x1C, *_CAPTION, len(encoded)) + encoded + datasets[end:]


def datasets_in(resources: bytes) -> bytes | None:
    """Return the datasets that Photoshop's image resources hold, or None."""
    return next(
        (resources[start:end] for number, _, start, end, _ in _resources(resources) if number == _DATASETS), None
    )


def with_datasets(resources: bytes, datasets: bytes) -> bytes:
    """Return the resources with other datasets, and without the digest of the old ones."""
    parts = []
    for number, first, start, _, last in _resources(resources):
        if number == _DATASETS:
            size = struct.pack(">I", len(datasets))
            parts.append(resources[first : start - 4] + size + datasets + b"\x00" * (len(datasets) % 2))
        elif number != _DIGEST:
            parts.append(resources[first:last])
    return b"".join(parts)


def _datasets(data: bytes) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yield record and number, start and end of the datasets before the first extended or broken one."""
    start = 0
    while start + 5 <= len(data) and data[start] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", data, start + 1)
        end = start + 5 + size
        if size >= 0x8000 or end > len(data):
            return
        yield (record, number), start, end
        start = end


def _resources(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, first byte, start and end of the content, and end of each image resource."""
    first = 0
    while first + 12 <= len(data) and data[first : first + 4] == b"8BIM":
        (number,) = struct.unpack_from(">H", data, first + 4)
        start = first + 6 + (data[first + 6] + 2) // 2 * 2 + 4  # after a name of even length, and the size
        if start > len(data):
            return
        end = start + int.from_bytes(data[start - 4 : start], "big")
        if end > len(data):
            return
        padded = end + (end - start) % 2
        yield number, first, start, end, padded
        first = padded
