"""Where captions go, whatever its form: what is there already, what is written, and when it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from captioner.bulk.sources import Found
from captioner.client import Caption
from captioner.errors import CaptionerError


class Captioned(NamedTuple):
    """An image with its new caption."""

    found: Found
    caption: Caption


class Output(Protocol):
    """One job's output. `wants` and `write` are called from two threads."""

    def wants(self, found: Found) -> bool:
        """False where the caption is there; raises a CaptionerError where it cannot be put."""

    def write(self, batch: Sequence[Captioned]) -> list[tuple[Found, CaptionerError]]:
        """Keeps all of them but those it returns. Raises OSError where nothing more can be kept."""

    def close(self, finished: bool, failed: bool) -> None:
        """`finished`: nothing is left to do, but for what `failed`."""
