"""Images that are no files of this machine: stdin, and addresses on the web."""

from __future__ import annotations

import asyncio
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from captioner.client.shrink import MAX_SOURCE_BYTES

if TYPE_CHECKING:  # needs httpcore, so it is imported when an image is fetched
    from captioner.client.image_fetcher import ImageFetcher

STDIN = "-"


def is_url(given: str) -> bool:
    """Return whether a PATH is the address of an image on the web."""
    return given[:8].lower().startswith(("http://", "https://"))


def read_stdin() -> bytes:
    """Return the file on stdin, cut after MAX_SOURCE_BYTES + 1 bytes: more is refused."""
    return sys.stdin.buffer.read(MAX_SOURCE_BYTES + 1)


def fetch(url: str, max_size: int) -> bytes:
    """Return the bytes at a URL. Raises ImageTooLarge above `max_size` bytes, and what ImageFetcher raises."""
    return asyncio.run(_fetcher(max_size).fetch(url))


@lru_cache
def _fetcher(max_size: int) -> ImageFetcher:
    from captioner.client.image_fetcher import ImageFetcher

    return ImageFetcher(("*",), max_bytes=max_size)
