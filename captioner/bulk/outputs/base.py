"""Where captions go, whatever its form: what is there already, what is written, and when it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from captioner.bulk.sources.discover import FoundImage
from captioner.errors import CaptionerError
from captioner.wire import Caption


class CaptionedImage(NamedTuple):
    """An image with its new caption."""

    found: FoundImage
    caption: Caption


class Output(Protocol):
    """One job's output. `wants` and `write` are called from two threads."""

    def wants(self, found: FoundImage) -> bool:
        """False where the caption is there; raises a CaptionerError where it cannot be put."""

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """Keeps all of them but those it returns. Raises OSError where nothing more can be kept."""

    def close(self, finished: bool, failed: bool) -> None:
        """`finished`: nothing is left to do, but for what `failed`."""
