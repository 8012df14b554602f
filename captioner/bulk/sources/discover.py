"""What was named on the command line → its images, one after the other, in an order that repeats.

Files, folders with all that is below them, globs (`**` too), zip and tar archives. The names of one folder or archive
are the most that is held at once. Hidden files, other extensions and archives inside folders are passed over; a file
that was named is always tried. A folder that several links lead to is entered once: loops end, no photo comes twice.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath

from captioner.bulk.sources import archives
from captioner.bulk.sources.item import Item
from captioner.bulk.sources.sidecar_names import Stems
from captioner.bulk.sources.walk import leads_to, matches, walk
from captioner.errors import CaptionerError, ImageMissing
from captioner.image.formats import check_file_size, is_image
from captioner.wire import MAX_IMAGE_BYTES


def read(item: Item) -> bytes:
    """An item's bytes; ImageMissing where they cannot be read, ImageTooLarge before too many are."""
    try:
        if item.member is not None and item.offset is None:
            size, data = archives.zip_member(item.path, item.member, MAX_IMAGE_BYTES)
            check_file_size(size)
        else:
            status = item.path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
                raise ImageMissing("not a file")
            size = status.st_size if item.size is None else item.size
            check_file_size(size)
            with item.path.open("rb") as file:
                file.seek(item.offset or 0)
                data = file.read(size)
    except archives.BROKEN as error:
        raise ImageMissing(f"cannot be read: {reason(error)}") from None
    if len(data) < size:
        raise ImageMissing(f"the file ends after {len(data)} of {size} bytes")
    return data


def reason(error: BaseException) -> str:
    """An exception in words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class FoundImage:
    """An image and how it is called, or a place that could not be read and why."""

    item: Item
    label: str  # as the user spelt it
    stem: str  # the key of its sidecar, without the sidecar's extension
    error: CaptionerError | None = None
    copied: bool = False  # the item's file is a copy, to be deleted after use


@dataclass(frozen=True)
class _Root:
    """One PATH: a file, an archive, a folder, or where a glob begins and its other parts."""

    given: str  # as the user spelt it, without the glob's parts
    path: Path  # the same, absolute
    is_file: bool
    pattern: tuple[str, ...] = ()

    def label(self, path: Path) -> str:
        """A path at or below this one, spelt as the user began it."""
        below = path.relative_to(self.path).parts
        return os.path.join(self.given, *below) if below else self.given  # noqa: PTH118  # Path drops "./"

    def brings(self, path: Path) -> bool:
        """Whether a visible file is among this root's own."""
        if self.is_file or not path.is_relative_to(self.path):
            return path == self.path
        below = path.relative_to(self.path).parts
        return matches(below, self.pattern) if self.pattern else not any(name.startswith(".") for name in below)


class Sources:
    """The images that PATHS name. A path that leads nowhere raises ImageMissing here, before anything begins."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._roots = [_root(path) for path in paths]
        self._named = {root.path for root in self._roots if root.is_file}
        alone = len(self._roots) == 1
        tops = [root.path if root.pattern or (alone and not root.is_file) else root.path.parent for root in self._roots]
        self.base = Path(os.path.commonpath(tops))  # keys are paths below it

    @property
    def plain_files(self) -> list[str] | None:
        """The files as they were given, where nothing but image files was."""
        named = [root.given for root in self._roots if root.is_file and not archives.is_archive(root.path)]
        return named if len(named) == len(self._roots) else None

    @property
    def places(self) -> list[str]:
        """The absolute paths, globs as they are: what makes one job another."""
        return [str(root.path.joinpath(*root.pattern)) for root in self._roots]

    @property
    def folder(self) -> Path:
        """The folder of the first PATH, where its images are."""
        root = self._roots[0]
        return root.path.parent if root.is_file else root.path

    def find(self, spool: Path | None = None) -> Iterator[FoundImage]:
        """Every image. Those of compressed tars are copied into `spool`; without one they are only named."""
        seen: set[Path] = set()  # of the named files
        entered: set[tuple[int, int]] = set()
        beside: tuple[Path, Stems] | None = None  # the last named file's folder
        for number, root in enumerate(self._roots):
            if root.pattern:
                yield from self._glob(root, number, spool)
            elif not root.is_file:
                for folder, names in walk(root.path, entered):
                    yield from self._folder(root, folder, names)
            elif root.path not in seen:
                seen.add(root.path)
                if archives.is_archive(root.path):
                    yield from self._archive(root.path, root.given, spool)
                    continue
                if beside is None or beside[0] != root.path.parent:
                    _, names = next(walk(root.path.parent, set()))
                    beside = root.path.parent, Stems([] if isinstance(names, OSError) else names)
                yield self._found(root, root.path, beside[1])

    def _folder(self, root: _Root, folder: Path, names: list[str] | OSError) -> Iterator[FoundImage]:
        if isinstance(names, OSError):
            yield self._unreadable(folder, root.label(folder), names)
            return
        stems = Stems(names)
        for name in names:
            if is_image(name) and folder / name not in self._named:
                yield self._found(root, folder / name, stems)

    def _glob(self, root: _Root, number: int, spool: Path | None) -> Iterator[FoundImage]:
        others = [other for place, other in enumerate(self._roots) if place < number or not other.pattern]
        others = [other for other in others if not other.is_file]
        below = len(root.path.parts)
        for folder, names in walk(root.path, set(), lambda folder: leads_to(folder.parts[below:], root.pattern)):
            if isinstance(names, OSError):
                yield self._unreadable(folder, root.label(folder), names)
                continue
            stems = Stems(names)
            for name in names:
                path, archive = folder / name, archives.is_archive(folder / name)
                if not (is_image(name) or archive) or not matches(path.parts[below:], root.pattern):
                    continue
                if path in self._named or any(other.brings(path) for other in others if other.pattern or not archive):
                    continue
                if archive:
                    yield from self._archive(path, root.label(path), spool)
                else:
                    yield self._found(root, path, stems)

    def _archive(self, path: Path, label: str, spool: Path | None) -> Iterator[FoundImage]:
        """Its images; of two members with one name the first."""
        key = self._key(path)
        try:
            left = {_inside(member.name) for member in archives.members(path)} - {None}
            stems = Stems(name for name in left if name is not None)

            def found(member: archives.Member, copy: Path | None = None) -> FoundImage:
                name = str(_inside(member.name))
                left.discard(name)
                item = Item(f"{key}/{name}", copy or path, None if copy else member.name, member.offset, member.size)
                return FoundImage(item, f"{label}/{name}", f"{key}/{stems.of(name)}", copied=copy is not None)

            if spool is not None and archives.is_compressed_tar(path):
                for member, copy in archives.unpack(path, spool, lambda member: _inside(member.name) in left):
                    yield found(member, copy)
                return
            for member in archives.members(path):
                if _inside(member.name) in left:
                    yield found(member)
        except archives.BROKEN as error:
            yield self._unreadable(path, label, error)

    def _found(self, root: _Root, path: Path, stems: Stems) -> FoundImage:
        key = self._key(path)
        return FoundImage(Item(key, path), root.label(path), key[: len(key) - len(path.name)] + stems.of(path.name))

    def _unreadable(self, path: Path, label: str, error: Exception) -> FoundImage:
        key = self._key(path)
        return FoundImage(Item(key, path), label, key, ImageMissing(f"cannot be read: {reason(error)}"))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()


def _root(given: str) -> _Root:
    path = Path(os.path.abspath(given))  # noqa: PTH100  # not resolve(): a link keeps its name
    if path.exists():
        return _Root(given, path, not path.is_dir())
    parts = Path(given).parts
    first = next((place for place, part in enumerate(parts) if has_magic(part)), None)
    if first is None:
        raise ImageMissing(f"{given}: no such file or folder")
    start, pattern = Path(*parts[:first]), parts[first:]
    root = _Root("" if first == 0 else str(start), Path(os.path.abspath(start)), False, pattern)  # noqa: PTH100
    below = len(root.path.parts)
    found = (
        name
        for folder, names in walk(root.path, set(), lambda folder: leads_to(folder.parts[below:], pattern))
        if isinstance(names, list)
        for name in names
        if matches((*folder.parts[below:], name), pattern)
    )
    if next(found, None) is None:
        raise ImageMissing(f"{given}: nothing matches")
    return root


def _inside(member: str) -> str | None:
    """A member's path without what would lead out of the archive; None if it is hidden or no image."""
    parts = [part for part in PurePosixPath(member).parts if part not in ("/", "..")]
    if not parts or not is_image(parts[-1]) or any(part.startswith(".") for part in parts):
        return None
    return "/".join(parts)
