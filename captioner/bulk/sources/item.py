"""One image of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """One image. It can be pickled: the process that reads it may run on another machine with the same disk.

    `key` names the image in the job and in its outputs: its path relative to the job's root, with forward slashes, such
    as `holiday/a.jpg`, or `photos.zip/holiday/a.jpg` for a member of an archive.
    """

    key: str
    path: Path  # the file, or the archive that holds it
    member: str | None = None  # its name in the archive
    offset: int | None = None  # byte offset of its data in an uncompressed tar
    size: int | None = None  # bytes
