"""The kinds of sidecars: a text file, an XMP file, or the metadata of the image itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from captioner.bulk.outputs import image_metadata, xmp
from captioner.bulk.sources.archives import is_archive
from captioner.bulk.sources.item import Item, read
from captioner.client.shrink import MAX_SOURCE_BYTES
from captioner.errors import CaptionerError, OutputRefused
from captioner.image.formats import is_image

TXT_EXTENSION = ".txt"
_EXTENSION = re.compile(r"\.[A-Za-z0-9_-]{1,16}")


class SidecarFormat(Protocol):
    """One kind of sidecar."""

    @property
    def extension(self) -> str | None:
        """The sidecar's extension; None if the caption is written into the image itself."""

    def target(self, folder: Path, stem: str, name: str) -> Path:
        """Return the sidecar of the image `name`, whose sidecar has the stem `stem`, in `folder`."""

    def current(self, target: Path, item: Item) -> str | None:
        """Return the existing caption; None without words. Raises OutputRefused if no caption can be written there."""

    def leaves_caption(self, item: Item) -> bool:
        """Return whether the image has a caption that this kind of sidecar does not change."""

    def render(self, target: Path, item: Item, text: str) -> bytes:
        """Return the whole new file."""


class Txt:
    """A UTF-8 file that holds only the caption."""

    def __init__(self, extension: str = TXT_EXTENSION) -> None:
        """`extension` has up to 16 letters, digits, - and _ after its dot. Raises OutputRefused for an image's."""
        if not _EXTENSION.fullmatch(extension) or is_image(f"a{extension}") or is_archive(Path(f"a{extension}")):
            raise OutputRefused(
                f"--extension is {extension!r}; it must be a dot and up to 16 letters or digits, and not that of images"
            )
        self.extension = extension

    def target(self, folder: Path, stem: str, name: str) -> Path:
        return folder / f"{stem}{self.extension}"

    def current(self, target: Path, item: Item) -> str | None:
        if not target.exists():
            return None
        return target.read_bytes().decode("utf-8-sig", "surrogateescape").strip() or None

    def leaves_caption(self, item: Item) -> bool:
        return False

    def render(self, target: Path, item: Item, text: str) -> bytes:
        try:
            if "\0" not in text:
                return f"{text}\n".encode()
        except UnicodeEncodeError:
            pass
        # `current` is in another encoding, and the caption is to be joined to it
        raise OutputRefused(f"{target} is not UTF-8 text; it was left unchanged")


class Xmp:
    """An XMP file with the caption as dc:description. Other properties of an existing sidecar are kept."""

    extension = ".xmp"

    def target(self, folder: Path, stem: str, name: str) -> Path:
        # darktable and digiKam write photo.jpg.xmp, Lightroom photo.xmp.
        others = (f"{name}.xmp", f"{name}.XMP", f"{stem}.XMP")
        return next((path for other in others if (path := folder / other).exists()), folder / f"{stem}.xmp")

    def current(self, target: Path, item: Item) -> str | None:
        text = xmp.description(target.read_bytes()) if target.exists() else None
        return text or _caption_in(item)

    def leaves_caption(self, item: Item) -> bool:
        return _caption_in(item) is not None

    def render(self, target: Path, item: Item, text: str) -> bytes:
        return xmp.with_description(target.read_bytes() if target.exists() else None, text)


class Exif:
    """The metadata of the image, or of a copy of the image."""

    extension = None

    def target(self, folder: Path, stem: str, name: str) -> Path:
        return folder / name

    def current(self, target: Path, item: Item) -> str | None:
        image = self._image(target, item)
        image_metadata.with_description(image, "")  # refuse before the image is captioned
        return image_metadata.description(image)

    def leaves_caption(self, item: Item) -> bool:
        return False

    def render(self, target: Path, item: Item, text: str) -> bytes:
        return image_metadata.with_description(self._image(target, item), text)

    def _image(self, target: Path, item: Item) -> bytes:
        return read(Item(item.key, target) if target.exists() else item, MAX_SOURCE_BYTES)


def _caption_in(item: Item) -> str | None:
    """Return the caption in the image itself; None also for an image that cannot be read."""
    try:
        return image_metadata.description(read(item, MAX_SOURCE_BYTES))
    except CaptionerError:
        return None
