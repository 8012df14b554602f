"""Writing that survives a kill: a whole file by a rename, one job a file by a lock, a log without its torn end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from captioner.errors import OutputRefused


def replace(path: Path, data: bytes) -> None:
    """The file is the old one or the new one at any moment, also after a power cut; its mode and links stay."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o666 & ~_UMASK
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
    descriptor, temporary = tempfile.mkstemp(prefix=".captioner-", dir=path.parent)  # hidden: not enumerated
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise


def settle(folders: Iterable[Path]) -> None:
    """Renames in these folders survive a power cut from here on."""
    for folder in set(folders):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_locked(path: Path) -> BinaryIO:
    """Opened for reading and appending, made if need be, and this process's alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe: what it holds cannot be read back
            raise OutputRefused(f"{path} cannot be written: not a file")
        file = path.open("a+b")
    except OSError as error:
        raise OutputRefused(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OutputRefused(f"{path} is being written by another job") from None
    file.seek(0)
    return file


def append(file: BinaryIO, data: bytes) -> None:
    """All of it, past the file's own buffer: what a full disk refuses is not tried again when the file is closed."""
    while data:
        data = data[os.write(file.fileno(), data) :]


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()
