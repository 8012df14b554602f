"""Crash-safe writing: replace a file atomically, lock a file for one job, append without a torn buffer.

Durability and locks are best effort: network disks, exFAT and WSL lack some of fsync, chmod and flock. Errors of a disk
that fails or is full are raised.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from captioner.errors import OutputRefused

DISK_FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT)  # every other file of the job would fail as well
_LOCKED = (errno.EAGAIN, errno.EACCES)


def check_replaceable(path: Path) -> None:
    """Raise OSError if `replace` could not write a file, because of its name or of its folder."""
    path = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(each for each in path.parents if each.exists())
    if not os.access(folder, os.W_OK | os.X_OK):  # also for root, if the disk is read-only
        raise PermissionError(errno.EACCES, "the folder is read-only", str(folder))


def replace(path: Path, data: bytes, prepare: Callable[[int], None] | None = None) -> None:
    """Replace a file's content atomically, also across a power cut. The file's mode and symbolic links are kept.

    `prepare` gets the descriptor of the new file once its content is written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o666 & ~_UMASK
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
    descriptor, temporary = tempfile.mkstemp(prefix=".captioner-", dir=path.parent)  # hidden: the sources skip it
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if prepare is not None:
                prepare(descriptor)
            with _where_supported():
                os.fchmod(descriptor, mode)
            sync_file(descriptor)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise


def sync_file(descriptor: int) -> None:
    """Sync an open file to its disk, if the disk can."""
    with _where_supported():
        os.fsync(descriptor)


def sync_folders(folders: Iterable[Path]) -> None:
    """Sync folders to their disk, if it can, so that earlier renames inside them survive a power cut."""
    for folder in set(folders):
        with _where_supported():
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def open_locked(path: Path) -> BinaryIO:
    """Open a file for reading and appending, created if it does not exist, and lock it for this process, if possible.

    Raises OutputRefused if the file cannot be opened, is not a regular file, or is locked by another job.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # the content of a device or a pipe cannot be read back
            raise OutputRefused(f"{path} cannot be written: not a regular file")
        file = path.open("a+b")
    except OSError as error:
        raise OutputRefused(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LOCKED:  # other errors say that the disk has no locks
            file.close()
            raise OutputRefused(f"{path} is being written by another job") from None
    file.seek(0)
    return file


def append(file: BinaryIO, data: bytes) -> None:
    """Append all of `data`, bypassing the file's buffer: after an error, closing the file must not write again."""
    while data:
        data = data[os.write(file.fileno(), data) :]


@contextlib.contextmanager
def _where_supported() -> Iterator[None]:
    """Ignore the error of a call that the disk does not have: ENOTSUP, ENOSYS, EINVAL, EPERM and others."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FAILURES:
            raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()
