"""What a job that changes files has done and is about to do, so that doing it again after a kill changes nothing.

Before a file is replaced its whole new text is on disk here; after it, that it was. One JSON object a line.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from captioner.bulk.outputs.atomic_write import append, open_locked


class Journal:
    """The journal of one job; a line torn by a kill, and what follows it, counts as never written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.begun: dict[str, str] = {}  # whole new texts that may or may not be in their files
        self._lock = threading.Lock()
        self._file = open_locked(path)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n") or not self._take(line):
                break
            whole += len(line)
        self._file.truncate(whole)

    def begin(self, texts: Mapping[str, str]) -> None:
        """On disk when this returns; after it the files may be replaced."""
        self._append([{"key": key, "text": text} for key, text in texts.items()], sync=True)

    def end(self, keys: list[str]) -> None:
        """The files hold their new texts. That may be lost: writing them again changes nothing."""
        with self._lock:
            for key in keys:
                self.begun.pop(key, None)
        self._append([{"done": key} for key in keys], sync=False)

    def close(self, remove: bool) -> None:
        """The end of this run, and with `remove` of the job."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _take(self, line: bytes) -> bool:
        try:
            record = json.loads(line)
            if "done" in record:
                self.done.add(record["done"])
                self.begun.pop(record["done"], None)
            else:
                self.begun[record["key"]] = record["text"]
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _append(self, records: list[dict[str, str]], sync: bool) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        with self._lock:
            append(self._file, lines.encode())
            if sync:
                os.fsync(self._file.fileno())
