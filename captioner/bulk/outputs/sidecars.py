"""A caption beside or in each image: .txt, .xmp, or the image's own EXIF."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from captioner.bulk.outputs import atomic_write, exif, xmp
from captioner.bulk.outputs.base import CaptionedImage
from captioner.bulk.outputs.caption_edit import Edit
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.sources.discover import FoundImage, read, reason
from captioner.bulk.sources.item import Item
from captioner.errors import CaptionerError, OutputRefused
from captioner.image.formats import is_image

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_WRITERS = 8  # files written at once: each waits for its disk


class Form(Protocol):
    """One kind of sidecar."""

    @property
    def extension(self) -> str | None:
        """Of the sidecar; None where it is the image itself."""

    def there(self, target: Path, item: Item) -> str | None:
        """The caption that is there. Raises OutputRefused where none can be put."""

    def file(self, target: Path, item: Item, text: str) -> bytes:
        """The whole new file."""


class Txt:
    """The caption and nothing else, UTF-8."""

    extension = ".txt"

    def there(self, target: Path, item: Item) -> str | None:
        return target.read_bytes().decode("utf-8-sig", "surrogateescape").strip() if target.exists() else None

    def file(self, target: Path, item: Item, text: str) -> bytes:
        try:
            return f"{text}\n".encode()
        except UnicodeEncodeError:  # what was there, see above, and is to be joined
            raise OutputRefused(f"{target} is no UTF-8 text; it was left as it is") from None


class Xmp:
    """dc:description; the rest of a sidecar is kept."""

    extension = ".xmp"

    def there(self, target: Path, item: Item) -> str | None:
        return xmp.description(target.read_bytes()) if target.exists() else None

    def file(self, target: Path, item: Item, text: str) -> bytes:
        return xmp.described(target.read_bytes() if target.exists() else None, text)


class Exif:
    """ImageDescription and XPComment, in the image or in a copy of it."""

    extension = None

    def there(self, target: Path, item: Item) -> str | None:
        return exif.description(self._image(target, item))

    def file(self, target: Path, item: Item, text: str) -> bytes:
        return exif.described(self._image(target, item), text)

    def _image(self, target: Path, item: Item) -> bytes:
        return read(Item(item.key, target) if target.exists() else item)


FORMS: dict[str, Callable[[], Form]] = {"txt": Txt, "xmp": Xmp, "exif": Exif}


class Sidecars:
    """captioner.bulk.outputs.base.Output, a file an image: in `out` with the same sub-folders, or beside the image.

    What changes files that are there keeps a journal: so it neither loses nor doubles a caption when it is killed.
    """

    def __init__(
        self, form: Form, edit: Edit, out: Path | None, journal: Journal | None, say: Callable[[str], None]
    ) -> None:
        self._form, self._edit, self._out, self._journal, self._say = form, edit, out, journal, say
        self._told = False
        self._writers = ThreadPoolExecutor(_WRITERS, "sidecars")

    def wants(self, found: FoundImage) -> bool:
        """See Output. What a killed job may or may not have written is written here."""
        key, target = found.item.key, self._target(found)
        self._tell(found)
        with _in_words():
            there = self._form.there(target, found.item)
            if self._journal is None:
                return there is None or not target.exists()
            if (text := self._journal.begun.get(key)) is not None:
                self._put(found, text)
                atomic_write.settle([target.parent])
                self._journal.end([key])
                return False
        return key not in self._journal.done

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output: the journal is on disk before any file is touched, all files before the journal's next line."""
        texts: dict[str, str] = {}
        failed: list[tuple[FoundImage, CaptionerError]] = []
        for found, caption in batch:
            try:
                with _in_words():
                    there = self._form.there(self._target(found), found.item)
                texts[found.item.key] = self._edit.text(caption.text, there)
            except CaptionerError as error:
                failed.append((found, error))
        if self._journal is not None:
            self._journal.begin(texts)
        ready = [found for found, _ in batch if found.item.key in texts]
        errors = list(self._writers.map(lambda found: self._try(found, texts[found.item.key]), ready))
        failed += [(found, error) for found, error in zip(ready, errors, strict=True) if error is not None]
        written = [found for found, error in zip(ready, errors, strict=True) if error is None]
        atomic_write.settle(self._target(found).parent for found in written)
        if self._journal is not None:
            self._journal.end([found.item.key for found in written])
        return failed

    def close(self, finished: bool, failed: bool) -> None:
        """See Output. The journal stays while anything is left to do."""
        self._writers.shutdown()
        if self._journal is not None:
            self._journal.close(remove=finished and not failed)

    def _target(self, found: FoundImage) -> Path:
        if self._out is None and (found.copied or found.item.member is not None):
            raise OutputRefused("an image in an archive has no folder of its own; say with --out where to")
        name = found.item.key if self._form.extension is None else found.stem + self._form.extension
        return found.item.path.parent / name.rpartition("/")[2] if self._out is None else self._out / name

    def _put(self, found: FoundImage, text: str) -> None:
        target = self._target(found)
        atomic_write.replace(target, self._form.file(target, found.item, text))

    def _try(self, found: FoundImage, text: str) -> CaptionerError | None:
        try:
            with _in_words():
                self._put(found, text)
        except CaptionerError as error:
            return error
        return None

    def _tell(self, found: FoundImage) -> None:
        if self._form.extension and found.stem == found.item.key and is_image(found.stem) and not self._told:
            self._told = True
            name = found.stem.rpartition("/")[2] + self._form.extension
            self._say(f"{found.label} shares its stem with another image: its caption goes to {name}, others' likewise")


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:  # the next file would fare no better
            raise
        raise OutputRefused(f"the caption cannot be written: {reason(error)}") from None
