"""The kinds of lines: text for people, JSON Lines, and CSV."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import BinaryIO, Protocol, get_args

from captioner.errors import OutputRefused
from captioner.wire import CSV_COLUMNS, Details, FinishReason

Columns = Sequence[tuple[str, str]]  # of name and value
JSON_COLUMNS = (("file", "file"), ("caption", "caption"), ("details", "details"))
TABLE_COLUMNS = tuple((name, name) for name in CSV_COLUMNS)
MAX_COLUMNS = 50
_NESTED = ("image", "timings_ms", "regions")  # fields of Details that are no single value


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
    """One JSON object a line, by default with all details."""

    header = b""

    def __init__(self, columns: Columns = JSON_COLUMNS) -> None:
        """See `check_columns`."""
        self._columns = check_columns(columns, ("details", "regions"))
        self._key = next(name for name, value in columns if value == "file")
        self._start = f"{{{json.dumps(columns[0][0])}: ".encode()

    def line(self, name: str, caption: str, details: Details) -> bytes:
        values = _values(name, caption, details)
        row = {column: values[value] for column, value in self._columns}
        try:
            return (json.dumps(row, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # the file name is not UTF-8
            return (json.dumps(row) + "\n").encode()

    def keys(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        end = 0
        for line in file:
            end += len(line)
            try:
                key = json.loads(line)[self._key]
                if not isinstance(key, str):
                    raise ValueError(f"the value of `{self._key}` is not a string")
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith(b"\n") and line[: len(self._start)] == self._start[: len(line)]:
                    return
                raise ValueError(f"{line[:60]!r}") from error
            yield key, end


class Csv:
    """One CSV row for each caption, for spreadsheets."""

    def __init__(self, columns: Columns = TABLE_COLUMNS, bom: bool = False) -> None:
        """See `check_columns`. `bom`: the file begins with a byte order mark, without which Excel misreads UTF-8."""
        self._columns = check_columns(columns)
        self._key = [value for _, value in columns].index("file")
        self.header = (codecs.BOM_UTF8 if bom else b"") + self._row([name for name, _ in columns])

    def line(self, name: str, caption: str, details: Details) -> bytes:
        values = _values(name, caption, details)
        return self._row([values[value] for _, value in self._columns])

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
                complete = len(row) == len(self._columns)
                if not last.endswith("\n") and not (complete and self._is_whole(row[-1])):
                    return
                if not complete:
                    raise ValueError(f"{row!r:.60}")
                yield row[self._key], end
        except csv.Error:  # the file ends inside a quoted field
            if file.read(1):
                raise ValueError("a quoted field that does not end") from None

    def _is_whole(self, last: str) -> bool:
        """Return whether the last field of a row without its line end is known to be complete."""
        return self._columns[-1][1] == "finish_reason" and last in get_args(FinishReason)

    def _row(self, fields: Sequence[object]) -> bytes:
        row = io.StringIO()
        csv.writer(row, lineterminator="\r\n").writerow(fields)  # it quotes the characters of its line end only
        return (row.getvalue().removesuffix("\r\n") + "\n").encode("utf-8", "surrogateescape")


def check_columns(columns: Columns, more: Sequence[str] = ()) -> Columns:
    """Return the columns. Each is the name of a column and its value: `file`, `caption`, or a field of Details.

    Raises OutputRefused for an unknown value, a name that comes twice, and without `file`, by which a job continues.
    """
    known = ("file", "caption", *more, *(each.name for each in fields(Details) if each.name not in _NESTED))
    names, values = [name for name, _ in columns], [value for _, value in columns]
    for value in values:
        if value not in known:
            raise OutputRefused(f"--columns has the value {value!r}; the values are {', '.join(known)}")
    if "file" not in values:
        raise OutputRefused("--columns lacks the value `file`, by which the job continues")
    if len(columns) > MAX_COLUMNS or len(set(names)) < len(names) or not all(0 < len(name) <= 100 for name in names):
        raise OutputRefused(f"--columns takes up to {MAX_COLUMNS} different names of 1 to 100 characters")
    return columns


def _values(name: str, caption: str, details: Details) -> dict[str, object]:
    values = asdict(details)
    return {**values, "file": name, "caption": caption, "details": values}
