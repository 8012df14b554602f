"""Read zip and tar archives: list the files inside, and read one of them. It knows archives, not images.

A member of an uncompressed tar has an offset in the archive, so any process can seek to it. A zip file is kept open,
up to eight in each process. A compressed tar can only be read in order: its members are copied to a folder, each when
the caller asks for the next one. The sizes that an archive states are not trusted, because a small
archive can unpack to any size.
"""

from __future__ import annotations

import contextlib
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from typing_extensions import Self

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# The errors of a broken or encrypted archive, raised when it is opened or at any member.
BROKEN = (
    OSError, EOFError, LookupError, ArithmeticError, ValueError, RuntimeError,
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
MAX_NAME_BYTES = 1 << 20  # of a long name, or of a member's further attributes
_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_UTF8_NAME, _UNICODE_NAME, _MADE_ON_WINDOWS = 0x800, 0x7075, 0  # of the zip format: flag, extra field, system
_ZIP_BLOCK = 4096  # bytes; zipfile decompresses this much of LZMA at once, to at most 30 MB


@dataclass(frozen=True)
class Member:
    """One regular file in an archive."""

    name: str  # as `zipfile` or `tarfile` spells it
    size: int  # bytes
    offset: int | None = None  # of its data in an uncompressed tar
    spelt: str = ""  # the name in its own encoding, if that differs

    @property
    def path(self) -> str:
        """Return its name without `/` and `..` parts."""
        return "/".join(part for part in PurePosixPath(self.spelt or self.name).parts if part not in ("/", ".."))


def is_archive(path: Path) -> bool:
    """Return whether a file name has an archive suffix."""
    return path.name.lower().endswith((*ZIP, *TAR))


def is_compressed_tar(path: Path) -> bool:
    """Return whether the archive is a tar whose members cannot be read by their offset."""
    if path.name.lower().endswith(ZIP):
        return False
    try:
        with tarfile.open(path, "r:", tarinfo=_TarInfo):
            return False
    except tarfile.ReadError:
        return True


def members(path: Path) -> Iterator[Member]:
    """Yield every regular file in the archive's order. Raises one of BROKEN where the archive cannot be read."""
    if path.name.lower().endswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            for each in archive.infolist():
                if not each.is_dir():
                    yield Member(each.filename, each.file_size, spelt=_zip_name(each))
        return
    compressed = is_compressed_tar(path)
    with tarfile.open(path, "r|*" if compressed else "r:", tarinfo=_TarInfo) as tar:
        for info in _headers(tar):
            yield Member(info.name, info.size, None if compressed else info.offset_data)


def unpack(path: Path, folder: Path, wanted: Callable[[Member], bool], max_size: int) -> Iterator[tuple[Member, Path]]:
    """Yield the wanted members of a compressed tar in its order, each copied to a new file in `folder`.

    The file of a member above `max_size` bytes is left empty.
    """
    with tarfile.open(path, "r|*", tarinfo=_TarInfo) as tar:
        for number, info in enumerate(_headers(tar)):
            member = Member(info.name, info.size)
            if wanted(member):
                source, target = tar.extractfile(info), folder / f"{path.name}-{number}"
                assert source is not None, "a regular file has content"
                with target.open("wb") as file:
                    if member.size <= max_size:
                        shutil.copyfileobj(source, file)
                yield member, target


def zip_member(path: Path, name: str, max_size: int) -> tuple[int, bytes]:
    """Return the stated size of a member in bytes, and its content, which is left empty above `max_size`."""
    stat = path.stat()
    archive = _open_zip(path, stat.st_mtime_ns, stat.st_size)
    info = archive.getinfo(name)
    if info.file_size > max_size:
        return info.file_size, b""
    if info.compress_type == zipfile.ZIP_BZIP2:  # zipfile decompresses it without a limit
        raise zipfile.BadZipFile("its compression, bzip2, is not supported in a zip archive; use deflate")
    with archive.open(info) as file:
        return info.file_size, b"".join(iter(lambda: file.read(_ZIP_BLOCK), b""))


@lru_cache(maxsize=8)
def _open_zip(path: Path, mtime_ns: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name in its own encoding; `zipfile` reads every name without the UTF-8 flag as CP437.

    In order: the name of the Unicode extra field, UTF-8 without the flag, CP437. Windows' backslashes become slashes.
    """
    name = info.filename
    if not info.flag_bits & _UTF8_NAME:
        raw = info.orig_filename.encode("cp437", "replace")
        with contextlib.suppress(UnicodeDecodeError):
            name = (_unicode_field(info.extra, raw) or raw).decode()
    return name.replace("\\", "/") if info.create_system == _MADE_ON_WINDOWS and "/" not in name else name


def _unicode_field(extra: bytes, raw: bytes) -> bytes | None:
    """Return the UTF-8 name of Info-ZIP's extra field, if it belongs to the name `raw`."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_NAME and size > 5 and extra[4:9] == struct.pack("<BI", 1, zlib.crc32(raw)):
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return None


class _TarInfo(tarfile.TarInfo):
    """A header that is checked before tarfile acts on it: tarfile reads long names and attributes into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:  # Python before 3.11.14 reads the same members for ever
            raise tarfile.ReadError(f"a member has a size of {info.size} bytes")
        if info.type in _NAMES and info.size > MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a member's name has {info.size} bytes; the limit is {MAX_NAME_BYTES}")
        return info


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files. `tar.members` is emptied on the way, because a tar may hold millions of files."""
    for info in tar:
        if info.size < 0:  # attributes replace the size in the header
            raise tarfile.ReadError(f"{info.name[:80]!r} has a size of {info.size} bytes")
        if info.isreg() and not info.issparse():
            yield info
        tar.members = []  # type: ignore[attr-defined]
