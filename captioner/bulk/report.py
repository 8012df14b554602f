"""What a job says about images without a caption: the report file, and the summary at its end."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

from captioner.bulk.progress import Progress
from captioner.bulk.sources.item import Item, reason
from captioner.bulk.sources.leave_out import PassedOver
from captioner.errors import CaptionerError, OutputRefused

_MAX_GROUPS = 8  # named in one line of the summary


class Report:
    """Counts failures and what was passed over, and writes each to `path`, if given, as a JSON line. Thread-safe."""

    def __init__(self, path: Path | None = None) -> None:
        """Raise OutputRefused if the file cannot be written."""
        self.cut = 0  # captions that end at their length limit
        self._path = path
        self._failures: Counter[str] = Counter()  # by code
        self._formats: Counter[str] = Counter()  # files passed over, by extension
        self._left_out: Counter[str] = Counter()  # files and folders, by rule
        self._began = time.monotonic()
        self._lock = threading.Lock()
        try:
            self._file = None if path is None else path.open("w", encoding="utf-8")
        except OSError as error:
            raise OutputRefused(f"{path} cannot be written: {reason(error)}") from None

    def failure(self, item: Item, error: CaptionerError) -> None:
        """Record an image that failed."""
        with self._lock:
            self._failures[error.code] += 1
            self._write(item.key, error.code, str(error))

    def passed_over(self, passed_over: PassedOver) -> None:
        """Record a file or folder that is not input."""
        with self._lock:
            (self._formats if passed_over.is_format else self._left_out)[passed_over.group] += 1
            self._write(passed_over.key, "PASSED_OVER", passed_over.reason)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def missing(self) -> list[str]:
        """Return what was passed over and left out, as up to two phrases."""
        phrases = []
        if self._formats:
            files = _count(self._formats.total(), "file")
            phrases.append(f"passed over: {files} of formats that are not read ({_groups(self._formats)})")
        if self._left_out:
            phrases.append(f"left out: {_groups(self._left_out)}")
        return phrases

    def summary(self, progress: Progress) -> str:
        """Return the result of the job, for people: one line of counts, and one line for each thing to know."""
        counts = f"{progress.captioned} captioned, {progress.skipped} skipped, {progress.failed} failed"
        lines = [f"{counts} in {_duration(time.monotonic() - self._began)}"]
        if progress.skipped:
            lines.append(f"skipped: {_count(progress.skipped, 'image')} with a caption")
        if self._failures:
            where = f"; {self._path} names each" if self._path else ""
            lines.append(f"failed: {_groups(self._failures)}{where}")
        if self.cut:
            lines.append(f"cut at the length limit: {_count(self.cut, 'caption')}")
        return "\n  ".join(lines + self.missing())

    def _write(self, file: str, code: str, message: str) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"file": file, "code": code, "message": message}) + "\n")
            self._file.flush()


def _groups(counter: Counter[str]) -> str:
    groups = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{group} {count}" for group, count in groups[:_MAX_GROUPS]]
    others = sum(count for _, count in groups[_MAX_GROUPS:])
    return ", ".join([*named, *([f"others {others}"] if others else [])])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
