"""Files inside zip and tar archives: which there are, and the bytes of one.

A member of a plain tar is a place in the file, so that any process reads it by seeking; a zip is kept open, a few a
process. A compressed tar can only be read in order: what is wanted of it is copied into a folder, file by file, as it
is asked for. Nothing here knows which names are images.
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
# What a broken or encrypted archive raises, when it is opened or at any member.
BROKEN = (OSError, EOFError, KeyError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Member:
    """One regular file in an archive."""

    name: str  # as the archive spells it
    size: int
    offset: int | None = None  # of its bytes in a plain tar


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith((*ZIP, *TAR))


def is_compressed_tar(path: Path) -> bool:
    """Whether its members have no place of their own in the file."""
    if path.name.lower().endswith(ZIP):
        return False
    try:
        with tarfile.open(path, "r:"):
            return False
    except tarfile.ReadError:
        return True


def members(path: Path) -> Iterator[Member]:
    """Every regular file, in the archive's order; one of BROKEN where it cannot be read on."""
    if path.name.lower().endswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            yield from (Member(each.filename, each.file_size) for each in archive.infolist() if not each.is_dir())
        return
    compressed = is_compressed_tar(path)
    with tarfile.open(path, "r|*" if compressed else "r:") as tar:
        for info in _headers(tar):
            yield Member(info.name, info.size, None if compressed else info.offset_data)


def unpack(path: Path, folder: Path, wanted: Callable[[Member], bool]) -> Iterator[tuple[Member, Path]]:
    """What is wanted of a compressed tar, in its order, each as a new file in `folder`."""
    with tarfile.open(path, "r|*") as tar:
        for number, info in enumerate(_headers(tar)):
            member = Member(info.name, info.size)
            if wanted(member):
                source, target = tar.extractfile(info), folder / f"{path.name}-{number}"
                assert source is not None, "a regular file has content"
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                yield member, target


def zip_member(path: Path, name: str, most: int) -> tuple[int, bytes]:
    """A member's size, and its bytes where it is not larger than `most`."""
    stat = path.stat()
    archive = _open_zip(path, stat.st_mtime_ns, stat.st_size)
    info = archive.getinfo(name)
    if info.file_size > most:
        return info.file_size, b""
    with archive.open(info) as file:
        return info.file_size, file.read()


@lru_cache(maxsize=8)
def _open_zip(path: Path, mtime_ns: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Its regular files; what was passed is forgotten, for a tar may hold millions."""
    for info in tar:
        if info.isreg() and not info.issparse():
            yield info
        tar.members = []  # type: ignore[attr-defined]
