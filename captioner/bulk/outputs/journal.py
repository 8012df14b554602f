"""The journal of a job that changes existing files: a killed job resumes without losing or duplicating a caption.

Before a file is replaced, its whole new text is synced to the journal. After it, the journal records that the file is
done. The journal holds one JSON object a line.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from captioner.bulk.outputs.atomic_write import append, open_locked, sync_file


class Journal:
    """The journal of one job. A line torn by a kill, and everything after it, is discarded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()  # keys
        self.begun: dict[str, str] = {}  # key → whole new text, which may or may not be in its file
        self._lock = threading.Lock()
        self._file = open_locked(path)
        intact = 0
        for line in self._file:
            if not line.endswith(b"\n") or not self._apply(line):
                break
            intact += len(line)
        self._file.truncate(intact)

    def begin(self, texts: Mapping[str, str]) -> None:
        """Record the whole new texts by key, synced to disk. Afterwards the files may be replaced."""
        self._append([{"key": key, "text": text} for key, text in texts.items()], sync=True)

    def end(self, keys: list[str]) -> None:
        """Record that the files hold their new texts. No sync: writing a text twice changes nothing."""
        with self._lock:
            for key in keys:
                self.begun.pop(key, None)
        self._append([{"done": key} for key in keys], sync=False)

    def close(self, remove: bool) -> None:
        """Close the journal; `remove` deletes it, because the job is complete."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _apply(self, line: bytes) -> bool:
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
                sync_file(self._file.fileno())
