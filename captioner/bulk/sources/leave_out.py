"""What a job leaves out of the folders and archives that it reads, and what it says about that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from captioner.bulk.sources.walk import is_hidden, matches
from captioner.errors import ParameterInvalid
from captioner.image.formats import SYSTEM_FOLDERS

HIDDEN, COPIES = "hidden", "written by a job"
# Captions and tables lie beside the images; they are not counted as files that were passed over.
CAPTIONS = (".txt", ".xmp", ".caption", ".json", ".jsonl", ".csv", ".part")


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that is not input of the job."""

    key: str  # as of an image
    label: str  # its path as the user spelt it
    group: str  # what the summary counts: an extension, HIDDEN, COPIES, or a pattern
    is_format: bool  # the file is none of the image formats

    @property
    def reason(self) -> str:
        """Return why, as a sentence of the report."""
        if self.is_format:
            return f"{self.group} is not an image format that is read"
        return self.group if self.group in (HIDDEN, COPIES) else f"excluded by {self.group}"


OnPassedOver = Callable[[PassedOver], None]


def ignore(passed_over: PassedOver) -> None:
    """Do nothing with it."""


def extension_of(name: str) -> str:
    """Return the lower-case extension of a file name, or `no extension`."""
    return PurePosixPath(name).suffix.lower()[:20] or "no extension"


class LeaveOut:
    """The rules: hidden names, the folders of NAS systems, `patterns`, and folders with copies that a job wrote.

    A pattern without `/` matches the name of a file or folder at any depth. One with `/` matches the path below a PATH;
    it may begin with that PATH. `holds_copies` tells whether a folder holds images that an earlier job wrote.
    `extension`: of captions, besides CAPTIONS.
    """

    def __init__(
        self,
        patterns: Sequence[str] = (),
        holds_copies: Callable[[Path], bool] = lambda folder: False,
        extension: str | None = None,
    ) -> None:
        if any(not pattern.strip("/") for pattern in patterns):
            raise ParameterInvalid("--exclude is empty; it must be a name or a path, such as 'raw' or 'old/*.png'")
        stripped = [pattern.rstrip("/") for pattern in patterns]
        self._names = [pattern for pattern in stripped if "/" not in pattern]
        self._paths = [pattern for pattern in stripped if "/" in pattern]
        self._holds_copies = holds_copies
        self.captions = CAPTIONS if extension is None else (*CAPTIONS, extension.lower())

    def folder(self, path: Path, below: Sequence[str], label: str) -> str | None:
        """Return why a folder is not entered, as a group of PassedOver, or None.

        `below`: its path's parts below a PATH.
        """
        if is_hidden(below[-1]):
            return HIDDEN
        if below[-1] in SYSTEM_FOLDERS:
            return below[-1]
        return self.pattern(below, label) or (COPIES if self._holds_copies(path) else None)

    def pattern(self, below: Sequence[str], label: str) -> str | None:
        """Return the pattern that leaves out a file or folder, or None."""
        for pattern in self._names:
            if fnmatchcase(below[-1], pattern):
                return pattern
        above = label.removesuffix("/".join(below))
        for pattern in self._paths:
            if matches(below, PurePosixPath(pattern.removeprefix(above)).parts):
                return pattern
        return None

    def member(self, parts: Sequence[str], label: str) -> str | None:
        """Return why a member of an archive is left out: because of its own name or of a folder's."""
        if any(map(is_hidden, parts)):
            return HIDDEN
        if folder := next((part for part in parts[:-1] if part in SYSTEM_FOLDERS), None):
            return folder
        above = label.removesuffix("/".join(parts))
        paths = [parts[:end] for end in range(1, len(parts) + 1)]
        return next((found for path in paths if (found := self.pattern(path, above + "/".join(path)))), None)
