"""Captions as lines: one file of JSON objects or CSV rows for the whole job, or stdout."""

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

from captioner.bulk.outputs import atomic_write
from captioner.bulk.outputs.base import CaptionedImage
from captioner.bulk.outputs.caption_edit import Edit
from captioner.bulk.sources.discover import FoundImage
from captioner.errors import CaptionerError, OutputRefused
from captioner.wire import Details, Ending

_SYNC_SECONDS = 1.0  # of captions a power cut may take; a kill takes none
COLUMNS = ("file", "caption", "model", "revision", "confidence", "unsure", "finish_reason")


class Form(Protocol):
    """One kind of line."""

    head: bytes

    def line(self, name: str, caption: str, details: Details) -> bytes:
        """A caption's line, with its end."""

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """The file's names, each with where its line ends, without a torn end. Raises ValueError at others' lines."""


class Text:
    """`name: caption`, for people; it is not read back."""

    head = b""

    def line(self, name: str, caption: str, details: Details) -> bytes:
        return f"{name}: {caption}\n".encode("utf-8", "surrogateescape")

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        raise NotImplementedError("text has no file")


class Jsonl:
    """An object a line, with all details."""

    head = b""
    _start = b'{"file": '

    def line(self, name: str, caption: str, details: Details) -> bytes:
        values = {"file": name, "caption": caption, "details": asdict(details)}
        try:
            return (json.dumps(values, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # a file name that is no UTF-8
            return (json.dumps(values) + "\n").encode()

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        end = 0
        for line in file:
            end += len(line)
            try:
                key = json.loads(line)["file"]
                if not isinstance(key, str):
                    raise ValueError("its file is no text")
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith(b"\n") and line[: len(self._start)] == self._start[: len(line)]:
                    return
                raise ValueError(f"{line[:60]!r}") from error
            yield key, end


class Csv:
    """A row a caption, for spreadsheets."""

    head = (",".join(COLUMNS) + "\n").encode()

    def line(self, name: str, caption: str, details: Details) -> bytes:
        values = asdict(details)
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow([name, caption, *(values[column] for column in COLUMNS[2:])])
        return row.getvalue().encode("utf-8", "surrogateescape")

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        head = file.read(len(self.head))
        if not self.head.startswith(head):
            raise ValueError(repr(head))
        end, last = len(head), "\n"

        def lines() -> Iterator[str]:
            nonlocal end, last
            for line in file:
                end += len(line)
                last = line.decode("utf-8", "surrogateescape")
                yield last

        try:
            for row in csv.reader(lines(), strict=True):
                whole = len(row) == len(COLUMNS)
                if not last.endswith("\n") and not (whole and row[-1] in get_args(Ending)):
                    return
                if not whole:
                    raise ValueError(f"{row!r:.60}")
                yield row[0], end
        except csv.Error:  # the file ends inside quotes
            if file.read(1):
                raise ValueError("quotes that do not end") from None


FORMS: dict[str, type[Text] | type[Jsonl] | type[Csv]] = {"stdout": Text, "jsonl": Jsonl, "csv": Csv}


class Table:
    """An Output to one file. The file is appended to; `overwrite` writes FILE.part and renames it at the end."""

    def __init__(self, form: Form, edit: Edit, path: Path) -> None:
        self._form, self._edit, self._path = form, edit, path
        self._part = path.with_name(path.name + ".part") if edit.existing == "overwrite" else path
        self._file = atomic_write.open_locked(self._part)
        self._synced = time.monotonic()
        whole = 0
        self._done: set[str] = set()
        try:
            for key, whole in self._form.keys(self._file):  # noqa: B007  # the last one's end is used
                self._done.add(key)
        except ValueError as error:
            self._file.close()
            raise OutputRefused(f"{self._part} holds what is no caption of ours: {error}") from None
        self._lines = len(self._done)
        self._resume(whole)

    def wants(self, found: FoundImage) -> bool:
        """See Output."""
        return found.item.key not in self._done

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output."""
        lines = (
            self._form.line(found.item.key, self._edit.decorated(caption.text), caption.details)
            for found, caption in batch
        )
        atomic_write.append(self._file, b"".join(lines))
        self._lines += len(batch)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        return []

    def close(self, finished: bool, failed: bool) -> None:
        """See Output. A new file takes the old one's place once every image was tried and one was captioned."""
        os.fsync(self._file.fileno())
        if finished and self._lines and self._part != self._path:
            self._part.replace(self._path)
            atomic_write.settle([self._path.parent])
        self._file.close()

    def _resume(self, whole: int) -> None:
        """Cuts what a kill has torn; a last line that only lacks its end gets one."""
        self._file.truncate(whole)
        if not whole:
            atomic_write.append(self._file, self._form.head)
            return
        self._file.seek(whole - 1)
        if self._file.read(1) != b"\n":
            atomic_write.append(self._file, b"\n")


class Stdout:
    """captioner.bulk.outputs.base.Output for a terminal or a pipe: nothing is there, and nothing is kept."""

    def __init__(self, form: Form, edit: Edit) -> None:
        self._form, self._edit = form, edit
        self._write(form.head)

    def wants(self, found: FoundImage) -> bool:
        """See Output."""
        return True

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output."""
        lines = (
            self._form.line(found.label, self._edit.decorated(caption.text), caption.details)
            for found, caption in batch
        )
        self._write(b"".join(lines))
        return []

    def close(self, finished: bool, failed: bool) -> None:
        """See Output."""

    def _write(self, data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer must not fail again at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise
