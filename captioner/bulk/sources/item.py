"""One image of a job, and how its bytes are read."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.bulk.sources import archives
from captioner.bulk.sources.streams import STDIN, fetch, is_url, read_stdin
from captioner.client.shrink import MAX_SOURCE_BYTES, large_image_lock, shrink_to_limits
from captioner.errors import CaptionerError, ImageMissing, ImageTooLarge
from captioner.image.limits import check_file_size
from captioner.wire import MAX_IMAGE_BYTES


@dataclass(frozen=True)
class Item:
    """One image. It can be pickled: the process that reads it may run on another machine with the same disk.

    `key` names the image in the job and in its outputs: its path relative to the job's root, with forward slashes, such
    as `holiday/a.jpg`, or `photos.zip/holiday/a.jpg` for a member of an archive. For an image on the web it is the URL.
    """

    key: str
    path: Path  # the file, or the archive that holds it
    member: str | None = None  # its name in the archive
    offset: int | None = None  # byte offset of its data in an uncompressed tar
    size: int | None = None  # bytes
    url: str = ""  # of an image on the web; `path` is not used then
    prompt: str | None = None  # of this image, if the job's prompt has fields

    def parameters(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of this image's request, given those of the job."""
        return dict(common) if self.prompt is None else {**common, "prompt": self.prompt}


@dataclass(frozen=True)
class FoundImage:
    """A discovered image, or with `error` a file, folder or archive that could not be read."""

    item: Item
    label: str  # its path as the user spelt it
    stem: str  # the key of its sidecar, without the sidecar's extension
    error: CaptionerError | None = None
    temporary: bool = False  # the item's file is a copy, to be deleted after use


def load(item: Item) -> bytes:
    """Return an image as it is sent: a smaller copy if it is over the server's limits. Raises what `read` raises."""
    try:
        return shrink_to_limits(read(item))
    except ImageTooLarge:
        with large_image_lock(MAX_SOURCE_BYTES):
            data = shrink_to_limits(read(item, MAX_SOURCE_BYTES))
        check_file_size(len(data))
        return data


def bytes_to_send(given: str) -> str | bytes:
    """Return a path as it is, and the image of stdin or a URL as its bytes. Raises what `read` raises."""
    if given == STDIN:
        return read_stdin()
    return load(Item(given, Path(), url=given)) if is_url(given) else given


def read(item: Item, max_size: int = MAX_IMAGE_BYTES) -> bytes:
    """Return the bytes of an item. Raises ImageMissing if they cannot be read.

    Raises ImageTooLarge above `max_size` bytes, before the file is read; for a URL, also what ImageFetcher raises.
    """
    if item.url:
        return fetch(item.url, max_size)
    try:
        if item.member is not None and item.offset is None:
            size, data = archives.zip_member(item.path, item.member, max_size)
            _check_size(size, max_size)
        else:
            status = item.path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would block until it has a writer
                raise ImageMissing("not a regular file")
            size = status.st_size if item.size is None else item.size
            _check_size(size, max_size)
            with item.path.open("rb") as file:
                file.seek(item.offset or 0)
                data = file.read(size)
    except archives.BROKEN as error:
        raise ImageMissing(f"cannot be read: {reason(error)}") from None
    if len(data) < size:
        raise ImageMissing(f"the file ends after {len(data)} of {size} bytes")
    return data


def _check_size(size: int, max_size: int) -> None:
    if size == 0 or size > max_size:
        check_file_size(size)


def reason(error: BaseException) -> str:
    """Return an exception as text for an error message."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
