"""Hash files of any size, block by block. This module imports no package."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

_BLOCK_BYTES = 1 << 20


class Digest(Protocol):
    """What hashlib returns."""

    def update(self, data: bytes, /) -> None: ...


def add_file(digest: Digest, path: Path) -> None:
    """Update `digest` with the content of a file."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
