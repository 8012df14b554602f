"""Captions as lines: one JSON Lines or CSV file for the whole job, or stdout. The CSV columns are wire.CSV_COLUMNS."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Protocol, get_args

from captioner.bulk.outputs import atomic_write, owner
from captioner.bulk.outputs.base import CaptionedImage
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.sources.discover import FoundImage
from captioner.errors import CaptionerError, OutputRefused
from captioner.wire import CSV_COLUMNS, Details, FinishReason

_SYNC_S = 1.0  # captions that a power cut may lose; a kill loses none


class TableFormat(Protocol):
    """One kind of line."""

    header: bytes

    def line(self, name: str, caption: str, details: Details) -> bytes:
        """Return the line of one caption, with its line end."""

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Yield each name in the file with the byte offset where its line ends. An incomplete last line is skipped.

        Raises ValueError at a line that this format did not write.
        """


class Text:
    """`name: caption`, for people. It cannot be read back."""

    header = b""

    def line(self, name: str, caption: str, details: Details) -> bytes:
        return f"{name}: {caption}\n".encode("utf-8", "surrogateescape")

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        raise NotImplementedError("text is not written to a file")


class Jsonl:
    """One JSON object a line, with all details."""

    header = b""
    _start = b'{"file": '

    def line(self, name: str, caption: str, details: Details) -> bytes:
        values = {"file": name, "caption": caption, "details": asdict(details)}
        try:
            return (json.dumps(values, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # the file name is not UTF-8
            return (json.dumps(values) + "\n").encode()

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        end = 0
        for line in file:
            end += len(line)
            try:
                key = json.loads(line)["file"]
                if not isinstance(key, str):
                    raise ValueError("the value of `file` is not a string")
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith(b"\n") and line[: len(self._start)] == self._start[: len(line)]:
                    return
                raise ValueError(f"{line[:60]!r}") from error
            yield key, end


class Csv:
    """One CSV row for each caption, for spreadsheets."""

    header = (",".join(CSV_COLUMNS) + "\n").encode()

    def line(self, name: str, caption: str, details: Details) -> bytes:
        values = asdict(details)
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow([name, caption, *(values[column] for column in CSV_COLUMNS[2:])])
        return row.getvalue().encode("utf-8", "surrogateescape")

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        header = file.read(len(self.header))
        if not self.header.startswith(header):
            raise ValueError(repr(header))
        end, last = len(header), "\n"

        def lines() -> Iterator[str]:
            nonlocal end, last
            for line in file:
                end += len(line)
                last = line.decode("utf-8", "surrogateescape")
                yield last

        try:
            for row in csv.reader(lines(), strict=True):
                complete = len(row) == len(CSV_COLUMNS)
                if not last.endswith("\n") and not (complete and row[-1] in get_args(FinishReason)):
                    return
                if not complete:
                    raise ValueError(f"{row!r:.60}")
                yield row[0], end
        except csv.Error:  # the file ends inside a quoted field
            if file.read(1):
                raise ValueError("a quoted field that does not end") from None


FORMATS: dict[str, type[Text] | type[Jsonl] | type[Csv]] = {"stdout": Text, "jsonl": Jsonl, "csv": Csv}


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
        lines = (
            self._format.line(image.item.key, self._edit.decorated(caption.text), caption.details)
            for image, caption in batch
        )
        atomic_write.append(self._file, b"".join(lines))
        self._lines += len(batch)
        if time.monotonic() - self._synced > _SYNC_S:
            atomic_write.sync_file(self._file.fileno())
            self._synced = time.monotonic()
        return []

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
        lines = (
            self._format.line(image.label, self._edit.decorated(caption.text), caption.details)
            for image, caption in batch
        )
        write_stdout(b"".join(lines))
        return []

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
