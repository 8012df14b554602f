"""The version folders of a Triton model repository: stage, place, quarantine, recover, prune. It knows no server.

    <model>/<version>/                what Triton may load; the captioner's highest version is live
    .staged/<version>/<model>/        a publish in progress, until it is confirmed
    .quarantine/<version>/<model>/    refused or rolled back, with the reason

A version is one folder in each of three Triton models, so placing it takes three renames, the captioner's last. A
process that dies in between leaves `.staged/<version>`. `recover`, which runs at every start and before every publish,
quarantines that version. Only version folders are added beside them: when anything else in a model's folder changes,
Triton reloads all versions of the model.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from captioner.artifacts.manifest import NAME as MANIFEST
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.repository_templates import CODE, compile_code, copy_file
from captioner.errors import ArtefactBroken, RepositoryBusy
from captioner.wire import CAPTIONER, PREPROCESS, VISION_ENCODER

VERSIONED = (VISION_ENCODER, PREPROCESS, CAPTIONER)  # in the order of their renames
STAGED, QUARANTINE, LOCK, REASON = ".staged", ".quarantine", ".lock", "why.json"
_OLD_QUARANTINE = ".aside"  # the folder in repositories of version 0.1; `recover` renames it
_EXPORT_PREFIX, _MAX_EXPORT_SECONDS = ".exported-", 24 * 3600
# Versions in memory: the live one and those before it, so that a rollback only moves traffic. At least 2.
KEEP_LOADED = 2
KEEP = 4  # default number of versions on disk; at least KEEP_LOADED

QuarantineState = Literal["refused", "rolled back"]


@dataclass(frozen=True)
class Quarantined:
    """A version that is not served any more, or never was. `when`: seconds since 1970."""

    version: int
    state: QuarantineState
    reason: str
    when: float


class VersionStore:
    """The model repository at `path`. Raises ArtefactBroken if it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / CAPTIONER).is_dir():
            raise ArtefactBroken(f"{path} is not a model repository: it does not contain the folder {CAPTIONER}")

    def numbers(self) -> list[int]:
        """Return the captioner's version numbers, ascending, including versions with an unreadable manifest."""
        found = (path.parent.name for path in (self.path / CAPTIONER).glob(f"*/{MANIFEST}"))
        return sorted(int(name) for name in found if name.isdecimal())

    def versions(self) -> dict[int, Manifest]:
        """Return the manifests by version number, ascending, without versions of another manifest format."""
        found = {}
        for version in self.numbers():
            with suppress(ArtefactBroken):
                found[version] = Manifest.load(self.folder(CAPTIONER, version))
        return found

    def live(self) -> int:
        """Return the version that Triton serves. Raises ArtefactBroken if nothing is published."""
        numbers = self.numbers()
        if not numbers:
            raise ArtefactBroken(
                f"{self.path} holds no published model; run: python -m export --repository {self.path}"
            )
        return numbers[-1]

    def verify(self) -> None:
        """Hash every file of the live version. Raises ArtefactBroken for the first file that differs."""
        live = self.live()
        Manifest.load(self.folder(CAPTIONER, live)).verify(self.path, str(live))

    def folder(self, model: str, version: int) -> Path:
        """Return the folder from which Triton loads that version of `model`."""
        return self.path / model / str(version)

    def quarantined(self) -> dict[int, Quarantined]:
        """Return the versions that were refused or rolled back, by number, ascending."""
        found = {}
        for path in (self.path / QUARANTINE).glob(f"*/{REASON}"):
            with suppress(OSError, ValueError, TypeError):
                entry = Quarantined(**json.loads(path.read_text("utf-8")))
                found[entry.version] = entry
        return dict(sorted(found.items()))

    def quarantined_revision(self, model: str, revision: str) -> Quarantined | None:
        """Return the newest quarantined version of that revision of a model, or None."""
        for version, entry in reversed(self.quarantined().items()):
            with suppress(ArtefactBroken):
                manifest = Manifest.load(self.path / QUARANTINE / str(version) / CAPTIONER)
                if (manifest.model, manifest.revision) == (model, revision):
                    return entry
        return None

    @contextmanager
    def lock(self, wait_s: float = 0) -> Iterator[VersionStore]:
        """Hold the lock under which versions change. Raises RepositoryBusy after `wait_s` seconds.

        The kernel releases the lock of a process that dies.
        """
        end = time.monotonic() + wait_s
        with (self.path / LOCK).open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise RepositoryBusy(f"another process is changing the versions in {self.path}") from None
                    time.sleep(0.1)
            yield self

    def stage(self) -> int:
        """Create the folders of the next version, holding only the models' code, and return its number."""
        used = [*self.numbers(), *_numbered(self.path / QUARANTINE), *_numbered(self.path / STAGED)]
        version = max(used, default=0) + 1
        for model in VERSIONED:
            folder = self.staged(version) / model
            folder.mkdir(parents=True)
            for name in CODE:
                if (self.folder(model, 1) / name).is_file():
                    copy_file(self.folder(model, 1) / name, folder / name)
        return version

    def staged(self, version: int) -> Path:
        """Return the parent of that version's folders (one for each model) until they are placed."""
        return self.path / STAGED / str(version)

    def place(self, model: str, version: int) -> None:
        """Move a staged folder to where Triton loads it."""
        _move(self.staged(version) / model, self.folder(model, version), version)

    def confirm(self, version: int) -> None:
        """Mark the version as published: `recover` keeps it."""
        shutil.rmtree(self.staged(version), ignore_errors=True)

    def quarantine(self, model: str, version: int) -> None:
        """Move one model's folder of that version, placed or staged, to where Triton does not see it."""
        for folder in (self.folder(model, version), self.staged(version) / model):
            if folder.is_dir():
                _move(folder, self.path / QUARANTINE / str(version) / model, version)

    def record_reason(self, version: int, state: QuarantineState, reason: str) -> None:
        """Store why a version is quarantined, and end its publish."""
        path = self.path / QUARANTINE / str(version) / REASON
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(Quarantined(version, state, reason, time.time()))) + "\n", "utf-8")
        self.confirm(version)

    @contextmanager
    def export_folder(self) -> Iterator[Path]:
        """Provide a temporary folder on the repository's disk. If the process is killed, `recover` removes it later."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=_EXPORT_PREFIX) as folder:
            yield Path(folder) / "exported"

    def recover(self) -> list[int]:
        """Quarantine the versions that a dead process left unfinished; return their numbers. Requires the lock.

        Also gives every version the model.py of this release, and deletes abandoned export folders.
        """
        if (self.path / _OLD_QUARANTINE).is_dir() and not (self.path / QUARANTINE).exists():
            (self.path / _OLD_QUARANTINE).rename(self.path / QUARANTINE)
        unfinished = self._unfinished()
        for version in unfinished:
            for model in reversed(VERSIONED):
                self.quarantine(model, version)
            if version not in self.quarantined():
                self.record_reason(version, "refused", "the process that published it or rolled it back died")
            self.confirm(version)
        for model, version in itertools.product(VERSIONED, self.numbers()):
            code, current = self.folder(model, version) / "model.py", self.folder(model, 1) / "model.py"
            if code.is_file() and code.read_bytes() != current.read_bytes():  # published by another release
                copy_file(current, code)
        for folder in self.path.glob(f"{_EXPORT_PREFIX}*"):
            if time.time() - folder.stat().st_mtime > _MAX_EXPORT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        return unfinished

    def _unfinished(self) -> list[int]:
        """Return the versions whose publish, abort or rollback did not end, ascending."""
        staged = _numbered(self.path / STAGED)
        newest = max((number for number in self.numbers() if number not in staged), default=0)
        # An abort or rollback moves the captioner first: the other models' folders are then newer than the captioner's.
        partial = {number for model in VERSIONED for number in _numbered(self.path / model) if number > max(newest, 1)}
        without_reason = set(_numbered(self.path / QUARANTINE)).difference(self.quarantined())
        return sorted({*staged, *partial, *without_reason})

    def prune(self, keep: int) -> list[int]:
        """Delete all but the newest `keep` versions, and all but as many quarantined ones; return their numbers.

        The versions that stay loaded (KEEP_LOADED) are always kept.
        Version 1 keeps its model.py, which new versions copy.
        """
        old = self.numbers()[: -max(keep, KEEP_LOADED)]
        for version in old:
            for model in reversed(VERSIONED):
                for path in _published(self.folder(model, version), version):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if version != 1:
                    shutil.rmtree(self.folder(model, version), ignore_errors=True)
        old_quarantined = list(self.quarantined())[:-keep] if keep else list(self.quarantined())
        for version in old_quarantined:
            shutil.rmtree(self.path / QUARANTINE / str(version), ignore_errors=True)
        return sorted([*old, *old_quarantined])


def _numbered(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _published(folder: Path, version: int) -> list[Path]:
    """Return the published files of a version folder, the manifest first. Version 1 also holds the models' code."""
    kept = CODE if version == 1 else ()
    found = [path for path in folder.glob("*") if path.name not in kept and path.name != "__pycache__"]
    return sorted(found, key=lambda path: path.name != MANIFEST)


def _move(source: Path, target: Path, version: int) -> None:
    """Move a version's folder in one rename; of version 1, whose code stays, move the files, the manifest last."""
    if version != 1:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in reversed(_published(source, version)):
        path.replace(target / path.name)
    compile_code(target / "model.py")
