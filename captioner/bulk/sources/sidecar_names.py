"""The names of sidecars in one folder, no two images sharing one."""

from __future__ import annotations

from collections.abc import Iterable

from captioner.image.formats import is_image

SIDECARS = (".txt", ".xmp")


class Stems:
    """`a.jpg` is `a`, unless `a.png` or `A.JPG` lies beside it: then each is its whole name.

    Names that differ in case alone count as equal, for there are file systems where they are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        once: set[str] = set()
        self._taken: set[str] = set()
        for name in map(str.casefold, names):
            if not name.endswith(SIDECARS):  # made by an earlier run; a name must not depend on that
                self._taken.add(name)  # the whole name, where `a.jpg.png` has it as its stem
            if is_image(name):
                stem = name.rpartition(".")[0]
                (self._taken if stem in once else once).add(stem)

    def of(self, name: str) -> str:
        """What stands in front of a sidecar's extension."""
        stem = name.rpartition(".")[0]
        return stem if stem and is_image(name) and stem.casefold() not in self._taken else name
