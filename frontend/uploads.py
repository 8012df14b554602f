"""Files that agents upload for the MCP tool, in the memory of this process."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from dataclasses import dataclass

from captioner.errors import ImageMissing
from captioner.image.limits import check_file_size

FILE_PATH = "/gradio_api/file="  # in the address that `gradio upload-mcp` makes of a file's name
PREFIX = "upload-"
UPLOAD_SECONDS = 600.0
MAX_UPLOADS_BYTES = 2**28
MAX_UPLOADS = 1024


@dataclass(frozen=True)
class _Upload:
    data: bytes
    client: str
    expires: float  # time.monotonic()


class Uploads:
    """Uploaded files by random names. Beyond the limits, the client that holds the most loses its oldest file."""

    def __init__(self) -> None:
        self._files: dict[str, _Upload] = {}  # the oldest first
        self._held: Counter[str] = Counter()  # bytes by client

    def add(self, data: bytes, client: str) -> str:
        """Keep a file and return its name, which only the uploader knows. Raises ImageTooLarge."""
        check_file_size(len(data))
        self._forget_expired()
        name = PREFIX + secrets.token_urlsafe(16)
        self._files[name] = _Upload(data, client, time.monotonic() + UPLOAD_SECONDS)
        self._held[client] += len(data)
        while self._held.total() > MAX_UPLOADS_BYTES or len(self._files) > MAX_UPLOADS:
            (largest, _), *_ = self._held.most_common(1)
            self._forget(next(name for name, file in self._files.items() if file.client == largest))
        return name

    def find(self, text: str) -> bytes | None:
        """Return the file that `text` names, by its name or its address, or None if `text` names no upload.

        Raises ImageMissing for an upload that is not here any more.
        """
        name = text.rpartition(FILE_PATH)[2]
        if not name.startswith(PREFIX):
            return None
        self._forget_expired()
        if name not in self._files:
            raise ImageMissing(f"the upload {name[:80]!r} is not kept here, or not any more; upload the file again")
        return self._files[name].data

    def _forget_expired(self) -> None:
        now = time.monotonic()
        while self._files and self._files[name := next(iter(self._files))].expires <= now:
            self._forget(name)

    def _forget(self, name: str) -> None:
        file = self._files.pop(name)
        self._held[file.client] -= len(file.data)
        if not self._held[file.client]:
            del self._held[file.client]
