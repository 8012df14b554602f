"""What must hold on this machine before a server can start, and the remedy where it does not.

`captioner up` refuses to start with the sentence that `captioner doctor` reports. See also captioner.launcher.ports.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from captioner.artifacts.version_store import VersionStore
from captioner.errors import ArtefactBroken, StartupRefused
from captioner.launcher import triton_wheel

# A start copies Triton's backend, writes a log and publishes the embedded model; each stub process takes some MiB of
# shared memory, and more for images in flight.
MIN_DISK_MIB, MIN_SHARED_MIB = 256, 32
_SHARED_MEMORY = Path("/dev/shm")


def require(repository: Path) -> None:
    """Raise StartupRefused with one sentence for the first precondition of a server on `repository` that fails."""
    for sentence in (missing_files(), read_only(repository), full_disk(repository), full_shared_memory()):
        if sentence:
            raise StartupRefused(sentence)


def missing_files() -> str | None:
    """Return what is missing of the server's own files: the wheel, or libpython."""
    try:
        triton_wheel.triton_root()
        triton_wheel.environment()
    except StartupRefused as refusal:
        return str(refusal)
    return None


def read_only(repository: Path) -> str | None:
    """Return why nothing can be published into `repository` if nothing is published there yet."""
    try:
        if VersionStore(repository).numbers():
            return None  # it can be served as it is
    except ArtefactBroken:
        pass
    folder = _existing(repository)
    if os.access(folder, os.W_OK):
        return None
    return f"{folder} is read-only and {repository} has no published model; name another folder with --repository"


def full_disk(repository: Path) -> str | None:
    """Return which disk is full: the repository's, or that of temporary files."""
    remedies = {
        _existing(Path(os.environ.get("TMPDIR") or "/tmp")): "free some space, or name another folder with TMPDIR",
        _existing(repository): "free some space, or name another folder with --repository",
    }
    for folder, remedy in remedies.items():
        free = _free_mib(folder)
        if free is not None and free < MIN_DISK_MIB and os.access(folder, os.W_OK):
            return f"only {free} MiB are free on the disk of {folder}, and a start needs {MIN_DISK_MIB} MiB; {remedy}"
    return None


def full_shared_memory() -> str | None:
    """Return how little room /dev/shm has, where Triton and its Python models exchange tensors."""
    free = _free_mib(_SHARED_MEMORY)
    if free is None or free >= MIN_SHARED_MIB:
        return None
    return (
        f"only {free} MiB are free in {_SHARED_MEMORY}, and Triton's Python models need {MIN_SHARED_MIB} MiB; remove "
        "files there that no program uses, or start the container with --shm-size=1g"
    )


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _free_mib(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free // 2**20
    except OSError:
        return None
