"""The names of sidecars: no two images of a folder share one."""

from __future__ import annotations

from collections.abc import Iterable

from captioner.image.formats import is_image

SIDECARS = (".txt", ".xmp")


class SidecarNames:
    """The sidecar stems of one folder, given the names of all its files.

    The stem of `a.jpg` is `a`, unless `a.png` or `A.JPG` is in the same folder: then each image keeps its whole name.
    Names are compared without case, because some file systems do so.
    """

    def __init__(self, names: Iterable[str]) -> None:
        stems: set[str] = set()
        self._taken: set[str] = set()
        for name in map(str.casefold, names):
            if not name.endswith(
                SIDECARS
            ):  # an earlier run may have written it, and names must not change between runs
                self._taken.add(name)  # a file `a.jpg` takes the stem of `a.jpg.png`
            if is_image(name):
                stem = name.rpartition(".")[0]
                (self._taken if stem in stems else stems).add(stem)

    def stem(self, name: str) -> str:
        """Return the name of the image's sidecar without the sidecar's extension."""
        stem = name.rpartition(".")[0]
        return stem if stem and is_image(name) and stem.casefold() not in self._taken else name
