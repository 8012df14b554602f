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
MIN_COST_BYTES = 2**18  # a smaller file counts as this much, which limits the number of files to 1,024


@dataclass(frozen=True)
class _Upload:
    data: bytes
    client: str
    expires: float  # time.monotonic()

    @property
    def cost(self) -> int:
        return max(len(self.data), MIN_COST_BYTES)


class Uploads:
    """Uploaded files by random names. Beyond the limit, the client that holds the most loses its oldest file."""

    def __init__(self) -> None:
        self._files: dict[str, _Upload] = {}  # the oldest first

    def add(self, data: bytes, client: str) -> str:
        """Keep a file and return its name, which only the uploader knows. Raises ImageTooLarge."""
        check_file_size(len(data))
        self._forget_expired()
        name = PREFIX + secrets.token_urlsafe(16)
        self._files[name] = _Upload(data, client, time.monotonic() + UPLOAD_SECONDS)
        held: Counter[str] = Counter()
        for file in self._files.values():
            held[file.client] += file.cost
        while held.total() > MAX_UPLOADS_BYTES:
            (largest, _), *_ = held.most_common(1)
            oldest = next(name for name, file in self._files.items() if file.client == largest)
            held[largest] -= self._files.pop(oldest).cost
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
            del self._files[name]
