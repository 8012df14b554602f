"""Discover the images of a command's PATHs, lazily and in a repeatable order.

A PATH is a file, a folder (read recursively), a glob (also with `**`), or a zip or tar archive. At most the names of
one folder or archive are held in memory. In folders, hidden files, files without an image suffix, and archives are
skipped; an explicitly named file is always tried. A folder that several links lead to is entered once, so that link
loops end and no photo is found twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath

from captioner.bulk.sources import archives
from captioner.bulk.sources.item import Item, reason
from captioner.bulk.sources.sidecar_names import SidecarNames
from captioner.bulk.sources.walk import matches, may_contain_match, walk
from captioner.errors import CaptionerError, ImageMissing
from captioner.image.formats import is_image
from captioner.image.limits import check_file_size
from captioner.wire import MAX_IMAGE_BYTES


@dataclass(frozen=True)
class FoundImage:
    """A discovered image, or with `error` a file, folder or archive that could not be read."""

    item: Item
    label: str  # its path as the user spelt it
    stem: str  # the key of its sidecar, without the sidecar's extension
    error: CaptionerError | None = None
    temporary: bool = False  # the item's file is a copy, to be deleted after use


@dataclass(frozen=True)
class _Root:
    """One PATH: a file, an archive or a folder; for a glob, its fixed beginning and the remaining `pattern`."""

    given: str  # as the user spelt it, without the pattern
    path: Path  # the same, absolute
    is_file: bool
    pattern: tuple[str, ...] = ()  # path parts

    def label(self, path: Path) -> str:
        """Return a path at or below this one, spelt as the user spelt the root."""
        below = path.relative_to(self.path).parts
        return os.path.join(self.given, *below) if below else self.given  # noqa: PTH118  # Path drops "./"

    def contains(self, path: Path) -> bool:
        """Return whether this root yields a file, provided that the file is not hidden."""
        if self.is_file or not path.is_relative_to(self.path):
            return path == self.path
        below = path.relative_to(self.path).parts
        return matches(below, self.pattern) if self.pattern else not any(name.startswith(".") for name in below)


class Sources:
    """The images that the PATHs name. The constructor raises ImageMissing for a path that does not exist."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._roots = [_root(path) for path in paths]
        self._named = {root.path for root in self._roots if root.is_file}
        single = len(self._roots) == 1
        tops = [
            root.path if root.pattern or (single and not root.is_file) else root.path.parent for root in self._roots
        ]
        self.base = Path(os.path.commonpath(tops))  # keys are relative to it

    @property
    def plain_files(self) -> list[str] | None:
        """The paths as the user spelt them if each is a file and none is an archive, otherwise None."""
        named = [root.given for root in self._roots if root.is_file and not archives.is_archive(root.path)]
        return named if len(named) == len(self._roots) else None

    @property
    def locations(self) -> list[str]:
        """The absolute paths, globs unexpanded. They identify the job."""
        return [str(root.path.joinpath(*root.pattern)) for root in self._roots]

    @property
    def folder(self) -> Path:
        """The folder of the first PATH, or the folder that contains it if it is a file."""
        root = self._roots[0]
        return root.path.parent if root.is_file else root.path

    def find(self, spool: Path | None = None) -> Iterator[FoundImage]:
        """Yield every image once.

        An image in a compressed tar is copied to `spool` when its turn comes. Without a spool, such images can be
        counted, but not read.
        """
        seen: set[Path] = set()  # explicitly named files
        visited: set[tuple[int, int]] = set()
        siblings: tuple[Path, SidecarNames] | None = None  # of the last named file's folder
        for number, root in enumerate(self._roots):
            if root.pattern:
                yield from self._glob(root, number, spool)
            elif not root.is_file:
                for folder, names in walk(root.path, visited):
                    yield from self._folder(root, folder, names)
            elif root.path not in seen:
                seen.add(root.path)
                if archives.is_archive(root.path):
                    yield from self._archive(root.path, root.given, spool)
                    continue
                if siblings is None or siblings[0] != root.path.parent:
                    _, names = next(walk(root.path.parent, set()))
                    siblings = root.path.parent, SidecarNames([] if isinstance(names, OSError) else names)
                yield self._found(root, root.path, siblings[1])

    def _folder(self, root: _Root, folder: Path, names: list[str] | OSError) -> Iterator[FoundImage]:
        if isinstance(names, OSError):
            yield self._unreadable(folder, root.label(folder), names)
            return
        sidecars = SidecarNames(names)
        for name in names:
            if is_image(name) and folder / name not in self._named:
                yield self._found(root, folder / name, sidecars)

    def _glob(self, root: _Root, number: int, spool: Path | None) -> Iterator[FoundImage]:
        others = [other for index, other in enumerate(self._roots) if index < number or not other.pattern]
        others = [other for other in others if not other.is_file]
        below = len(root.path.parts)

        def enter(folder: Path) -> bool:
            return may_contain_match(folder.parts[below:], root.pattern)

        for folder, names in walk(root.path, set(), enter):
            if isinstance(names, OSError):
                yield self._unreadable(folder, root.label(folder), names)
                continue
            sidecars = SidecarNames(names)
            for name in names:
                path, archive = folder / name, archives.is_archive(folder / name)
                if not (is_image(name) or archive) or not matches(path.parts[below:], root.pattern):
                    continue
                if path in self._named or any(other.contains(path) for other in others if other.pattern or not archive):
                    continue
                if archive:
                    yield from self._archive(path, root.label(path), spool)
                else:
                    yield self._found(root, path, sidecars)

    def _archive(self, path: Path, label: str, spool: Path | None) -> Iterator[FoundImage]:
        """Yield the images of an archive. Of members with the same name, only the first counts."""
        key = self._key(path)
        try:
            left = {_image_name(member.name) for member in archives.members(path)} - {None}
            sidecars = SidecarNames(name for name in left if name is not None)

            def found(member: archives.Member, copy: Path | None = None) -> FoundImage:
                name = str(_image_name(member.name))
                left.discard(name)
                item = Item(f"{key}/{name}", copy or path, None if copy else member.name, member.offset, member.size)
                stem = f"{key}/{sidecars.stem(name)}"
                return FoundImage(item, f"{label}/{name}", stem, _too_large(member.size) if copy else None, bool(copy))

            if spool is not None and archives.is_compressed_tar(path):
                unpacked = archives.unpack(
                    path, spool, lambda member: _image_name(member.name) in left, MAX_IMAGE_BYTES
                )
                for member, copy in unpacked:
                    yield found(member, copy)
                return
            for member in archives.members(path):
                if _image_name(member.name) in left:
                    yield found(member)
        except archives.BROKEN as error:
            yield self._unreadable(path, label, error)

    def _found(self, root: _Root, path: Path, sidecars: SidecarNames) -> FoundImage:
        key = self._key(path)
        stem = key[: len(key) - len(path.name)] + sidecars.stem(path.name)
        return FoundImage(Item(key, path), root.label(path), stem)

    def _unreadable(self, path: Path, label: str, error: Exception) -> FoundImage:
        key = self._key(path)
        return FoundImage(Item(key, path), label, key, ImageMissing(f"cannot be read: {reason(error)}"))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()


def _too_large(size: int) -> CaptionerError | None:
    """Return the error of a member that was not copied out of a compressed tar."""
    if size > MAX_IMAGE_BYTES:
        try:
            check_file_size(size)
        except CaptionerError as error:
            return error
    return None


def _root(given: str) -> _Root:
    path = Path(os.path.abspath(given))  # noqa: PTH100  # not resolve(): a link must keep its own name
    if path.exists():
        return _Root(given, path, not path.is_dir())
    parts = Path(given).parts
    first = next((index for index, part in enumerate(parts) if has_magic(part)), None)
    if first is None:
        raise ImageMissing(f"{given}: no such file or folder")
    start, pattern = Path(*parts[:first]), parts[first:]
    root = _Root("" if first == 0 else str(start), Path(os.path.abspath(start)), False, pattern)  # noqa: PTH100
    below = len(root.path.parts)
    matching = (
        name
        for folder, names in walk(root.path, set(), lambda folder: may_contain_match(folder.parts[below:], pattern))
        if isinstance(names, list)
        for name in names
        if matches((*folder.parts[below:], name), pattern)
    )
    if next(matching, None) is None:
        raise ImageMissing(f"{given}: no file matches")
    return root


def _image_name(member: str) -> str | None:
    """Return a member's path without `/` and `..` parts, or None if the member is hidden or is not an image."""
    parts = [part for part in PurePosixPath(member).parts if part not in ("/", "..")]
    if not parts or not is_image(parts[-1]) or any(part.startswith(".") for part in parts):
        return None
    return "/".join(parts)
