"""Walk folders on disk in a repeatable order, and match paths with globs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path


def walk(
    top: Path, visited: set[tuple[int, int]], enter: Callable[[Path], bool] = lambda folder: True
) -> Iterator[tuple[Path, list[str] | OSError]]:
    """Yield each folder with its sorted file names, or with the error that prevented reading it.

    Symbolic links are followed. A folder that is in `visited` (device, inode) is skipped, so that link loops end; each
    folder that is entered is added. `enter` decides whether to descend into a folder.
    """
    folders = [top]
    while folders:
        folder = folders.pop()
        files: list[str] = []
        below: list[str] = []
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    (below if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            yield folder, error
            continue
        files.sort()
        yield folder, files
        folders += [folder / name for name in sorted(below, reverse=True) if enter(folder / name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden."""
    return name.startswith(".")


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match the parts of a glob; `**` matches any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(matches(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:])


def may_contain_match(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a folder, given by its path's parts, can contain a match of the glob."""
    for name, part in zip(names, pattern, strict=False):
        if part == "**":
            return True
        if not fnmatchcase(name, part):
            return False
    return len(names) < len(pattern)
