"""The interface of an output: which captions exist already, writing new ones, finishing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from captioner.bulk.sources.discover import FoundImage
from captioner.errors import CaptionerError
from captioner.wire import Caption


class CaptionedImage(NamedTuple):
    """An image with its new caption."""

    image: FoundImage
    caption: Caption


class Output(Protocol):
    """The output of one job. `wants` and `write` are called from two threads."""

    def wants(self, image: FoundImage) -> bool:
        """Return False if the caption exists already. Raises a CaptionerError if none can be written for this image."""

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """Write the captions; return the images that failed. Raises OSError when nothing more can be written."""

    def close(self, finished: bool, failed: bool) -> None:
        """Close the output. `finished`: every image was tried; `failed`: some images failed."""
