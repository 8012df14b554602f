"""Discover the images of a command's PATHs, lazily and in a repeatable order.

A PATH is a file, a folder (read recursively), a glob, a zip or tar archive, `-` for stdin, or a URL. At most the names
of one folder or archive are held in memory. In folders, hidden files, files without an image suffix, and archives are
passed over, and so is what `LeaveOut` names; an explicitly named file is always tried. A folder that several links lead
to is entered once, so that link loops end and no photo is found twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from captioner.bulk.sources import archives
from captioner.bulk.sources.archive_images import images_in
from captioner.bulk.sources.item import FoundImage, Item, reason
from captioner.bulk.sources.leave_out import HIDDEN, LeaveOut, OnPassedOver, PassedOver, extension_of, ignore
from captioner.bulk.sources.roots import Root, roots
from captioner.bulk.sources.sidecar_names import SidecarNames
from captioner.bulk.sources.streams import STDIN, read_stdin
from captioner.bulk.sources.walk import is_hidden, matches, may_contain_match, walk
from captioner.errors import ImageMissing
from captioner.image.formats import is_image

__all__ = ["FoundImage", "Sources"]


class Sources:
    """The images that the PATHs name. The constructor raises ImageMissing for a path that does not exist."""

    def __init__(self, paths: Sequence[str], leave_out: LeaveOut | None = None) -> None:
        self._leave_out = leave_out or LeaveOut()
        self._roots = [root for path in dict.fromkeys(paths) for root in roots(path)]
        local = [root for root in self._roots if not root.is_stream]
        self._named = {root.path for root in local if root.is_file}
        whole = len(local) == 1 and not local[0].is_file
        tops = [root.path if root.pattern or whole else root.path.parent for root in local]
        self.base = Path(os.path.commonpath(tops)) if tops else None  # keys of files are relative to it
        self.key_prefix = ""  # in front of every key, such as `holiday/`

    @property
    def plain_files(self) -> list[str] | None:
        """The paths as the user spelt them if each is a file and none is an archive, otherwise None."""
        named = [root.given for root in self._roots if root.is_file and not self._is_archive(root)]
        return named if len(named) == len(self._roots) else None

    @property
    def named_archives(self) -> list[str]:
        """The archives among the paths, as the user spelt them."""
        return [root.given for root in self._roots if self._is_archive(root)]

    @property
    def streams(self) -> list[str]:
        """The paths that are no files: `-` for stdin, and URLs."""
        return [root.given for root in self._roots if root.is_stream]

    @property
    def locations(self) -> list[str]:
        """The absolute paths, globs unexpanded. They identify the job."""
        return [root.given if root.is_stream else str(root.path.joinpath(*root.pattern)) for root in self._roots]

    @property
    def folder(self) -> Path:
        """The folder of the first PATH, or the folder that contains it if it is a file."""
        root = next((root for root in self._roots if not root.is_stream), self._roots[0])
        return root.path.parent if root.is_file else root.path

    def find(self, spool: Path | None = None, passed_over: OnPassedOver = ignore) -> Iterator[FoundImage]:
        """Yield every image once. `passed_over` is called for each file and folder that is not input.

        An image in a compressed tar is copied to `spool` when its turn comes. Without a spool, such images can be
        counted, but not read.
        """
        seen: set[Path] = set()  # explicitly named files
        visited: set[tuple[int, int]] = set()
        siblings: tuple[Path, SidecarNames] | None = None  # of the last named file's folder
        for number, root in enumerate(self._roots):
            if root.is_stream:
                yield self._stream(root.given, spool)
            elif root.pattern:
                yield from self._glob(root, number, spool, passed_over)
            elif not root.is_file:
                for folder, names in walk(root.path, visited, self._enter(root, passed_over)):
                    yield from self._folder(root, folder, names, passed_over)
            elif root.path not in seen:
                seen.add(root.path)
                if pattern := self._leave_out.pattern(root.path.parts[-1:], root.given):
                    passed_over(PassedOver(self._key(root.path), root.given, pattern, False))
                    continue
                if archives.is_archive(root.path):
                    yield from self._archive(root.path, root.given, spool, passed_over)
                    continue
                if siblings is None or siblings[0] != root.path.parent:
                    _, names = next(walk(root.path.parent, set()))
                    siblings = root.path.parent, SidecarNames([] if isinstance(names, OSError) else names)
                yield self._found(root, root.path, siblings[1])

    def _stream(self, given: str, spool: Path | None) -> FoundImage:
        """Return the image at a URL, or a copy of stdin in `spool`."""
        if given != STDIN:
            return FoundImage(Item(given, Path(), url=given), given, given)
        copy = None if spool is None else spool / "stdin"
        if copy is not None:
            copy.write_bytes(read_stdin())
        return FoundImage(Item(given, copy or Path()), given, given, temporary=copy is not None)

    def _enter(self, root: Root, passed_over: OnPassedOver) -> Callable[[Path], bool]:
        """Return the function that decides whether to descend into a folder below `root`."""

        def enter(folder: Path) -> bool:
            below = root.below(folder)
            if root.pattern and not may_contain_match(below, root.pattern):
                return False
            group = self._leave_out.folder(folder, below, root.label(folder))
            if group is not None:
                passed_over(PassedOver(self._key(folder), root.label(folder), group, False))
            return group is None

        return enter

    def _folder(
        self, root: Root, folder: Path, names: list[str] | OSError, passed_over: OnPassedOver
    ) -> Iterator[FoundImage]:
        if isinstance(names, OSError):
            yield self._unreadable(folder, root.label(folder), names)
            return
        sidecars = SidecarNames(names)
        for name in names:
            path = folder / name
            if path not in self._named and self._is_input(root, path, is_image(name), passed_over):
                yield self._found(root, path, sidecars)

    def _glob(self, root: Root, number: int, spool: Path | None, passed_over: OnPassedOver) -> Iterator[FoundImage]:
        others = [other for index, other in enumerate(self._roots) if index < number or not other.pattern]
        others = [other for other in others if not other.is_file]
        for folder, names in walk(root.path, set(), self._enter(root, passed_over)):
            if isinstance(names, OSError):
                yield self._unreadable(folder, root.label(folder), names)
                continue
            sidecars = SidecarNames(names)
            for name in names:
                path, archive = folder / name, archives.is_archive(folder / name)
                if path in self._named or not matches(root.below(path), root.pattern):
                    continue
                if any(self._contains(other, path) for other in others if other.pattern or not archive):
                    continue
                if self._is_input(root, path, is_image(name) or archive, passed_over):
                    if archive:
                        yield from self._archive(path, root.label(path), spool, passed_over)
                    else:
                        yield self._found(root, path, sidecars)

    def _contains(self, root: Root, path: Path) -> bool:
        """Return whether `root` yields a file."""
        if not root.contains(path):
            return False
        below = root.below(path)
        folders = (path.parents[len(below) - 2 - depth] for depth in range(len(below) - 1))
        return not is_hidden(path.name) and not any(
            self._leave_out.folder(folder, root.below(folder), root.label(folder)) for folder in folders
        )

    def _is_input(self, root: Root, path: Path, readable: bool, passed_over: OnPassedOver) -> bool:
        """Return whether a file in a folder is to be read. `passed_over` hears of others, but not of captions."""
        label, group, is_format = root.label(path), None, False
        if is_hidden(path.name):
            group, silent = HIDDEN, not readable
        elif not readable:
            group, silent, is_format = (
                extension_of(path.name),
                path.name.lower().endswith(self._leave_out.captions),
                True,
            )
        else:
            group, silent = self._leave_out.pattern(root.below(path), label), False
        if group is not None and not silent:
            passed_over(PassedOver(self._key(path), label, group, is_format))
        return group is None

    def _archive(self, path: Path, label: str, spool: Path | None, passed_over: OnPassedOver) -> Iterator[FoundImage]:
        try:
            yield from images_in(path, self._key(path), label, self._leave_out, spool, passed_over)
        except archives.BROKEN as error:
            yield self._unreadable(path, label, error)

    def _found(self, root: Root, path: Path, sidecars: SidecarNames) -> FoundImage:
        key = self._key(path)
        stem = key[: len(key) - len(path.name)] + sidecars.stem(path.name)
        return FoundImage(Item(key, path), root.label(path), stem)

    def _unreadable(self, path: Path, label: str, error: Exception) -> FoundImage:
        key = self._key(path)
        return FoundImage(Item(key, path), label, key, ImageMissing(f"cannot be read: {reason(error)}"))

    def _is_archive(self, root: Root) -> bool:
        return root.is_file and not root.is_stream and archives.is_archive(root.path)

    def _key(self, path: Path) -> str:
        assert self.base is not None, "only streams have no base, and they need no key"
        return self.key_prefix + path.relative_to(self.base).as_posix()
