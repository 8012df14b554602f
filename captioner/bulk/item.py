"""One image of a job, and what became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from captioner.client import Caption
from captioner.errors import CaptionerError


@dataclass(frozen=True)
class Item:
    """One image. It can be pickled: where it is read may be another machine with the same disk.

    `key` names it in the job and its outputs: its path below what was asked for, with forward slashes, such as
    `holiday/a.jpg`, or `photos.zip/holiday/a.jpg` for a member of an archive.
    """

    key: str
    path: Path  # the file, or the archive that holds it
    member: str | None = None  # its name in the archive
    offset: int | None = None  # where its bytes begin in a plain tar
    size: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A caption, or why there is none."""

    item: Item
    caption: Caption | None
    error: CaptionerError | None


class Engine(Protocol):
    """What captions the items: outcomes come as they are ready, each item's exactly once, in any order.

    No image's failure ends the others'. It asks for items no faster than it can work on them.
    """

    def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Every item's outcome."""
