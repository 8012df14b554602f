"""Replace a file that belongs to somebody: its owner, mode, extended attributes and hard links stay, dates on request.

A file with several hard links cannot be renamed over: the other names would keep the old content. Its new content is
synced to a hidden file first, then written in place. The hidden file of a killed job completes it, see `complete`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from captioner.bulk.outputs import atomic_write

# The file system has no such attribute, or this user may not set it.
_NOT_KEPT = (
    errno.ENOENT,
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENODATA,
    errno.ERANGE,
)


def replace(path: Path, data: bytes, like: Path, keep_dates: bool) -> None:
    """Replace a file's content atomically. A new file belongs to the owner of `like` if this user may say so."""
    path = Path(os.path.realpath(path))
    status = path.stat() if path.exists() else None
    if status is not None and status.st_nlink > 1:
        whole = _whole(path)
        atomic_write.replace(whole, data)
        atomic_write.sync_folders([path.parent])
        complete(path)
        if keep_dates:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return

    def prepare(descriptor: int) -> None:
        """Give the new file its attributes before it takes the name."""
        model = path if status is not None else like
        with _best_effort():
            owner = model.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        if status is not None:
            _copy_extended_attributes(path, descriptor)
        if keep_dates and (status is not None or path.suffix == like.suffix):  # not a new sidecar
            dates = model.stat()
            os.utime(descriptor, ns=(dates.st_atime_ns, dates.st_mtime_ns))

    atomic_write.replace(path, data, prepare)


def complete(path: Path) -> None:
    """Write the content of a replacement that a killed job had begun in place; do nothing without one."""
    path = Path(os.path.realpath(path))
    whole = _whole(path)
    if not whole.exists():
        return
    with path.open("r+b") as file:
        file.write(whole.read_bytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    whole.unlink()


def _copy_extended_attributes(path: Path, descriptor: int) -> None:
    names: list[str] = []
    with _best_effort():
        names = os.listxattr(path)
    for name in names:
        with _best_effort():
            os.setxattr(descriptor, name, os.getxattr(path, name))


def _whole(path: Path) -> Path:
    """Return the hidden file with the whole new content; the name of `path` may be as long as a name can be."""
    return path.parent / f".captioner-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.whole"


@contextlib.contextmanager
def _best_effort() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_KEPT:
            raise
