"""Which folder of images an output belongs to, so that images of one name in two folders are not taken for each other.

The record is a hidden JSON file: in an output folder, or beside an output file. The path in it is relative, so that
the images and the output may be moved together.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from captioner.bulk.outputs import atomic_write
from captioner.errors import OutputRefused

_NAME = ".captioner.json"


def owned_prefix(output: Path, base: Path, *, folder: bool) -> str | None:
    """Return what to put in front of the keys of the images below `base`, such as `holiday/`; None without a record.

    Images in a sub-folder of the output's images get the keys that they have there. Raises OutputRefused if the output
    belongs to other images.
    """
    record = _record(output, folder)
    owner = _read(record) if is_used(output) else None
    if owner is None:
        return None
    inputs = os.path.normpath(record.parent / owner["inputs"])
    real, mine = Path(os.path.realpath(inputs)), Path(os.path.realpath(base))
    if not mine.is_relative_to(real):
        raise OutputRefused(
            f"{output} holds captions of {inputs}, not of {base}; choose another --out, or delete {record} if {base} "
            "is the same folder in a new place"
        )
    return "" if mine == real else mine.relative_to(real).as_posix() + "/"


def own(output: Path, base: Path, *, folder: bool) -> None:
    """Record that an output belongs to the images below `base`."""
    record = _record(output, folder)
    _write(output, record, {"inputs": os.path.relpath(base, record.parent), "copies": False})


def mark_copies(output: Path) -> None:
    """Record that an owned folder holds copies of its images, which are not input of a job."""
    record = _record(output, True)
    if (owner := _read(record)) is not None and not holds_copies(output):
        _write(output, record, owner | {"copies": True})


def _write(output: Path, record: Path, owner: dict[str, Any]) -> None:
    try:
        atomic_write.replace(record, json.dumps(owner).encode())
    except OSError as error:
        raise OutputRefused(f"{output} cannot be written: {error.strerror}") from None


def move(part: Path, path: Path) -> None:
    """Move the record of a file that is about to replace another one."""
    with contextlib.suppress(FileNotFoundError):
        _record(part, False).replace(_record(path, False))


def holds_copies(folder: Path) -> bool:
    """Return whether a folder holds copies of images that a job wrote."""
    owner = _read(_record(folder, True))
    return owner is not None and owner.get("copies") is True


def is_used(output: Path) -> bool:
    """Return whether an output file or folder holds anything."""
    if output.is_dir():
        with os.scandir(output) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    return output.exists() and output.stat().st_size > 0


def _record(output: Path, folder: bool) -> Path:
    return Path(os.path.abspath(output / _NAME if folder else output.with_name(f".{output.name}{_NAME}")))  # noqa: PTH100


def _read(record: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(record.read_bytes())
        return owner if isinstance(owner["inputs"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
