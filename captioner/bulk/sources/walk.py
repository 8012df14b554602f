"""Folders on disk, one after the other in an order that repeats, and the parts of a glob."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path


def walk(
    top: Path, entered: set[tuple[int, int]], enter: Callable[[Path], bool] = lambda folder: True
) -> Iterator[tuple[Path, list[str] | OSError]]:
    """Each folder with its files' names, sorted, or why it cannot be read. Hidden names are left out.

    Links are followed; a folder that is in `entered` already is not, so that loops end.
    """
    folders = [top]
    while folders:
        folder = folders.pop()
        files: list[str] = []
        below: list[str] = []
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        (below if entry.is_dir() else files).append(entry.name)
        except OSError as error:
            yield folder, error
            continue
        files.sort()
        yield folder, files
        folders += [folder / name for name in sorted(below, reverse=True) if enter(folder / name)]


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's names are those of the pattern; `**` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(matches(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:])


def leads_to(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a folder may hold what matches."""
    for name, part in zip(names, pattern, strict=False):
        if part == "**":
            return True
        if not fnmatchcase(name, part):
            return False
    return len(names) < len(pattern)
