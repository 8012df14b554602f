"""Captions as lines: one JSON Lines or CSV file for the whole job, or stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from captioner.bulk.outputs import atomic_write, owner
from captioner.bulk.outputs.base import CaptionedImage
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.table_formats import TableFormat
from captioner.bulk.sources.discover import FoundImage
from captioner.errors import CaptionerError, OutputRefused

_SYNC_S = 1.0  # captions that a power cut may lose; a kill loses none


def written_path(path: Path, edit: CaptionEdit) -> Path:
    """Return the file that a job appends to: with `overwrite` it is not `path`, which it replaces at the end."""
    return path.with_name(path.name + ".part") if edit.existing == "overwrite" else path


class Table:
    """An Output that appends to one file. With `overwrite` it writes FILE.part, and renames it at the end."""

    def __init__(self, table_format: TableFormat, edit: CaptionEdit, path: Path) -> None:
        self._format, self._edit, self._path = table_format, edit, path
        self._part = written_path(path, edit)
        self._file = atomic_write.open_locked(self._part)
        self._synced = time.monotonic()
        end = 0
        self._done: set[str] = set()
        try:
            for key, end in self._format.keys(self._file):  # noqa: B007  # the end of the last line is used
                self._done.add(key)
        except ValueError as error:
            self._file.close()
            raise OutputRefused(f"{self._part} holds a line that this command did not write: {error}") from None
        self._lines = len(self._done)
        self._resume(end)

    def wants(self, image: FoundImage) -> bool:
        """See Output."""
        return image.item.key not in self._done

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output."""
        lines, failed = _lines(batch, lambda image: image.item.key, self._format, self._edit)
        atomic_write.append(self._file, b"".join(lines))
        self._lines += len(lines)
        if time.monotonic() - self._synced > _SYNC_S:
            atomic_write.sync_file(self._file.fileno())
            self._synced = time.monotonic()
        return failed

    def close(self, finished: bool, failed: bool) -> None:
        """See Output. FILE.part replaces FILE when every image was tried and at least one was captioned."""
        atomic_write.sync_file(self._file.fileno())
        if finished and self._lines and self._part != self._path:
            owner.move(self._part, self._path)
            self._part.replace(self._path)
            atomic_write.sync_folders([self._path.parent])
        self._file.close()

    def _resume(self, end: int) -> None:
        """Truncate an incomplete last line; add the line end to a last line that lacks only that."""
        self._file.truncate(end)
        if not end:
            atomic_write.append(self._file, self._format.header)
            return
        self._file.seek(end - 1)
        if self._file.read(1) != b"\n":
            atomic_write.append(self._file, b"\n")


class Stdout:
    """An Output to a terminal or a pipe. It does not know earlier captions."""

    def __init__(self, table_format: TableFormat, edit: CaptionEdit) -> None:
        self._format, self._edit = table_format, edit
        write_stdout(table_format.header)

    def wants(self, image: FoundImage) -> bool:
        """See Output."""
        return True

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output."""
        lines, failed = _lines(batch, lambda image: image.label, self._format, self._edit)
        write_stdout(b"".join(lines))
        return failed

    def close(self, finished: bool, failed: bool) -> None:
        """See Output."""


def write_stdout(data: bytes) -> None:
    """Write to stdout. Raises BrokenPipeError if the reader, such as `head`, has ended."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the interpreter's last flush must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _lines(
    batch: Sequence[CaptionedImage], name: Callable[[FoundImage], str], table_format: TableFormat, edit: CaptionEdit
) -> tuple[list[bytes], list[tuple[FoundImage, CaptionerError]]]:
    """Return the lines, and the images whose captions the edit refused."""
    lines: list[bytes] = []
    failed: list[tuple[FoundImage, CaptionerError]] = []
    for image, caption in batch:
        try:
            lines.append(table_format.line(name(image), edit.decorated(caption.text), caption.details))
        except CaptionerError as error:
            failed.append((image, error))
    return lines, failed
