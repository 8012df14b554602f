"""Read zip and tar archives: list the files inside, and read one of them. It knows archives, not images.

A member of an uncompressed tar has an offset in the archive, so any process can seek to it. A zip file is kept open,
up to eight in each process. A compressed tar can only be read in order: its members are copied to a folder, each when
the caller asks for the next one.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# The errors of a broken or encrypted archive, raised when it is opened or at any member.
BROKEN = (OSError, EOFError, KeyError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Member:
    """One regular file in an archive."""

    name: str  # as the archive spells it
    size: int  # bytes
    offset: int | None = None  # of its data in an uncompressed tar


def is_archive(path: Path) -> bool:
    """Return whether a file name has an archive suffix."""
    return path.name.lower().endswith((*ZIP, *TAR))


def is_compressed_tar(path: Path) -> bool:
    """Return whether the archive is a tar whose members cannot be read by their offset."""
    if path.name.lower().endswith(ZIP):
        return False
    try:
        with tarfile.open(path, "r:"):
            return False
    except tarfile.ReadError:
        return True


def members(path: Path) -> Iterator[Member]:
    """Yield every regular file in the archive's order. Raises one of BROKEN where the archive cannot be read."""
    if path.name.lower().endswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            yield from (Member(each.filename, each.file_size) for each in archive.infolist() if not each.is_dir())
        return
    compressed = is_compressed_tar(path)
    with tarfile.open(path, "r|*" if compressed else "r:") as tar:
        for info in _headers(tar):
            yield Member(info.name, info.size, None if compressed else info.offset_data)


def unpack(path: Path, folder: Path, wanted: Callable[[Member], bool]) -> Iterator[tuple[Member, Path]]:
    """Yield the wanted members of a compressed tar in its order, each copied to a new file in `folder`."""
    with tarfile.open(path, "r|*") as tar:
        for number, info in enumerate(_headers(tar)):
            member = Member(info.name, info.size)
            if wanted(member):
                source, target = tar.extractfile(info), folder / f"{path.name}-{number}"
                assert source is not None, "a regular file has content"
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                yield member, target


def zip_member(path: Path, name: str, max_size: int) -> tuple[int, bytes]:
    """Return the size of a member in bytes, and its content, which is left empty above `max_size`."""
    stat = path.stat()
    archive = _open_zip(path, stat.st_mtime_ns, stat.st_size)
    info = archive.getinfo(name)
    if info.file_size > max_size:
        return info.file_size, b""
    with archive.open(info) as file:
        return info.file_size, file.read()


@lru_cache(maxsize=8)
def _open_zip(path: Path, mtime_ns: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files. `tar.members` is emptied on the way, because a tar may hold millions of files."""
    for info in tar:
        if info.isreg() and not info.issparse():
            yield info
        tar.members = []  # type: ignore[attr-defined]
