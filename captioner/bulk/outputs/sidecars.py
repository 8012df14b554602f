"""Captions in sidecars, one for each image, see `sidecar_formats`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from captioner.bulk.outputs import atomic_write, file_attributes
from captioner.bulk.outputs.base import CaptionedImage
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.outputs.sidecar_formats import SidecarFormat
from captioner.bulk.sources.discover import FoundImage
from captioner.bulk.sources.item import reason
from captioner.errors import CaptionerError, OutputRefused, typed
from captioner.image.formats import is_image

_WRITERS = 8  # threads, because each write waits for the disk


class Sidecars:
    """An Output with one file for each image: beside the image, or in `out` with the same sub-folders.

    A job that changes existing files needs a journal, so that a kill neither loses nor duplicates a caption.
    """

    def __init__(
        self,
        sidecar_format: SidecarFormat,
        edit: CaptionEdit,
        out: Path | None,
        journal: Journal | None,
        log: Callable[[str], None],
        keep_dates: bool = False,
    ) -> None:
        """`keep_dates`: files that are changed keep their times of access and modification."""
        self._keep_dates = keep_dates
        self._format, self._edit, self._out, self._journal, self._log = sidecar_format, edit, out, journal, log
        self._warned: set[str] = set()
        self._writers = ThreadPoolExecutor(_WRITERS, "sidecars")

    def wants(self, image: FoundImage) -> bool:
        """See Output. A text that a killed job had begun to write is written here."""
        key, target = image.item.key, self._target(image)
        self._warn_of_shared_stem(image)
        with _os_errors_refused():
            file_attributes.complete(target)
            current = self._format.current(target, image.item)
            if self._journal is None:
                # A caption in the image is not yet one in the copy of the image.
                if current is not None and (self._format.extension is not None or target.exists()):
                    return False
            elif (text := self._journal.begun.get(key)) is not None:
                self._replace(image, text)
                atomic_write.sync_folders([target.parent])
                self._journal.end([key])
                return False
            elif key in self._journal.done:
                return False
            atomic_write.check_replaceable(target)
        self._check_link(image, target)
        self._warn_of_caption_left(image)
        return True

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output. The order is: new texts to the journal, synced; files; folders, synced; end to the journal."""
        texts: dict[str, str] = {}
        failed: list[tuple[FoundImage, CaptionerError]] = []
        for image, caption in batch:
            try:
                with _os_errors_refused():
                    current = self._format.current(self._target(image), image.item)
                texts[image.item.key] = self._edit.merged(caption.text, current)
            except Exception as error:
                failed.append((image, _item_error(error)))
        if self._journal is not None:
            self._journal.begin(texts)
        ready = [image for image, _ in batch if image.item.key in texts]
        errors = list(self._writers.map(lambda image: self._try_replace(image, texts[image.item.key]), ready))
        failed += [(image, error) for image, error in zip(ready, errors, strict=True) if error is not None]
        written = [image for image, error in zip(ready, errors, strict=True) if error is None]
        atomic_write.sync_folders(self._target(image).parent for image in written)
        if self._journal is not None:
            self._journal.end([image.item.key for image in written])
        return failed

    def close(self, finished: bool, failed: bool) -> None:
        """See Output. The journal is kept until every image has its caption."""
        self._writers.shutdown()
        if self._journal is not None:
            self._journal.close(remove=finished and not failed)

    def _target(self, image: FoundImage) -> Path:
        if self._out is None and (image.temporary or image.item.member is not None):
            raise OutputRefused("nothing can be written beside an image in an archive; name a folder with --out")
        folder, _, name = image.item.key.rpartition("/")
        parent = image.item.path.parent if self._out is None else self._out / folder
        return self._format.target(parent, image.stem.rpartition("/")[2], name)

    def _check_link(self, image: FoundImage, target: Path) -> None:
        """Raise OutputRefused for a link to a file outside the job's folder: somebody else may use that file."""
        if not target.is_symlink():
            return
        root = self._out or image.item.path.parents[image.item.key.count("/")]
        real = Path(os.path.realpath(target))
        if not any(real.is_relative_to(os.path.realpath(folder)) for folder in (root, target.parent)):
            raise OutputRefused(f"{target} is a link to {real}, outside {root}; name a folder with --out")

    def _replace(self, image: FoundImage, text: str) -> None:
        target = self._target(image)
        self._check_link(image, target)
        data = self._format.render(target, image.item, text)
        file_attributes.replace(target, data, image.item.path, self._keep_dates)

    def _try_replace(self, image: FoundImage, text: str) -> CaptionerError | None:
        try:
            with _os_errors_refused():
                self._replace(image, text)
        except Exception as error:
            return _item_error(error)
        return None

    def _warn_of_shared_stem(self, image: FoundImage) -> None:
        if self._format.extension and image.stem == image.item.key and is_image(image.stem):
            name = self._target(image).name
            self._warn("stem", f"{image.label} shares its stem with another image: its caption goes to {name}")

    def _warn_of_caption_left(self, image: FoundImage) -> None:
        kind = "caption in the image"
        if self._edit.existing != "skip" and kind not in self._warned and self._format.leaves_caption(image.item):
            self._warn(kind, f"{image.label} holds a caption itself, which stays there; --to exif changes it")

    def _warn(self, kind: str, line: str) -> None:
        """Log the first line of each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            self._log(f"{line}; others likewise")


def _item_error(error: Exception) -> CaptionerError:
    """Return the error of one image, whatever its old files did to a parser. Raises the error of a failing disk."""
    if isinstance(error, OSError):
        raise error
    return typed(error)


@contextmanager
def _os_errors_refused() -> Iterator[None]:
    """Turn an OSError of one file into OutputRefused; let an error of the whole disk pass."""
    try:
        yield
    except OSError as error:
        if error.errno in atomic_write.DISK_FAILURES:
            raise
        name = f": {error.filename}" if error.filename else ""
        raise OutputRefused(f"the caption cannot be written: {reason(error)}{name}") from None
