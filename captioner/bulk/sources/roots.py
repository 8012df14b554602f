"""The PATHs of a command: files, folders, archives, and globs with `**`, `{a,b}` and a leading `~`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from captioner.bulk.sources.streams import STDIN, is_url
from captioner.bulk.sources.walk import is_hidden, matches, may_contain_match, walk
from captioner.errors import ImageMissing

_MAX_BRACES = 1000  # paths of one pattern


@dataclass(frozen=True)
class Root:
    """One PATH: a file, an archive or a folder; for a glob, its fixed beginning and the remaining `pattern`."""

    given: str  # as the user spelt it, without the pattern
    path: Path  # the same, absolute
    is_file: bool
    pattern: tuple[str, ...] = ()  # path parts
    is_stream: bool = False  # `given` is STDIN or a URL; `path` is not used then

    def label(self, path: Path) -> str:
        """Return a path at or below this one, spelt as the user spelt the root."""
        below = self.below(path)
        return os.path.join(self.given, *below) if below else self.given  # noqa: PTH118  # Path drops "./"

    def below(self, path: Path) -> tuple[str, ...]:
        """Return the parts of a path below this one."""
        return path.relative_to(self.path).parts

    def contains(self, path: Path) -> bool:
        """Return whether this root yields a file, provided that it is not left out."""
        if self.is_file or not path.is_relative_to(self.path):
            return path == self.path
        return not self.pattern or matches(self.below(path), self.pattern)


def roots(given: str) -> list[Root]:
    """Return the roots of one PATH: several for a pattern with braces. Raises ImageMissing if nothing is there."""
    if given == STDIN or is_url(given):
        return [Root(given, Path(), True, is_stream=True)]
    spelt = given if _path(given).exists() else os.path.expanduser(given)  # noqa: PTH111  # Path drops "./"
    if _path(spelt).exists():
        return [Root(spelt, _path(spelt), not _path(spelt).is_dir())]
    found = [_root(each) for each in _without_braces(spelt)]
    if not any(root.is_file or not root.pattern or _has_match(root) for root in found):
        raise ImageMissing(f"{given}: no file matches")
    return found


def _root(given: str) -> Root:
    """Return a path or a glob. Leading parts that exist as they are spelt are no pattern: `holiday [2024]/*.jpg`."""
    parts = Path(given).parts
    first = next((index for index, part in enumerate(parts) if not _path(*parts[: index + 1]).exists()), len(parts))
    start, pattern = Path(*parts[:first]), parts[first:]
    if pattern and not has_magic(pattern[0]):
        raise ImageMissing(f"{given}: no such file or folder")
    return Root("" if first == 0 else str(start), _path(start), not pattern and not start.is_dir(), pattern)


def _path(*parts: str | Path) -> Path:
    return Path(os.path.abspath(Path(*parts)))  # noqa: PTH100  # not resolve(): a link must keep its own name


def _has_match(root: Root) -> bool:
    def enter(folder: Path) -> bool:
        return not is_hidden(folder.name) and may_contain_match(root.below(folder), root.pattern)

    return any(
        matches((*root.below(folder), name), root.pattern)
        for folder, names in walk(root.path, set(), enter)
        if isinstance(names, list)
        for name in names
        if not is_hidden(name)
    )


def _without_braces(pattern: str) -> list[str]:
    """Return the patterns that `{a,b}` stands for, as a shell expands it. Raises ImageMissing for too many."""
    expanded = list(_expanded(pattern, _MAX_BRACES))
    if len(expanded) > _MAX_BRACES:
        raise ImageMissing(f"{pattern[:80]}: its braces stand for more than {_MAX_BRACES} paths")
    return expanded


def _expanded(pattern: str, limit: int) -> Iterator[str]:
    """Yield at most `limit` + 1 patterns."""
    depth, start, commas = 0, 0, list[int]()
    for at, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, commas = at, []
        elif character == "," and depth == 1:
            commas.append(at)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0 and commas:
                edges = [start, *commas, at]
                choices = (pattern[left + 1 : right] for left, right in itertools.pairwise(edges))
                for choice in choices:
                    for each in _expanded(pattern[:start] + choice + pattern[at + 1 :], limit):
                        yield each
                        limit -= 1
                        if limit < 0:
                            return
                return
    yield pattern
