"""The version folders of a Triton model repository: placed whole, taken back, set aside, pruned. It knows no server.

    <model>/<version>/            what Triton may load; the captioner's highest is live, the next is the one before
    .staged/<version>/<model>/    a publish under way, until it is confirmed
    .quarantine/<version>/<model>/     refused or rolled back, with the reason

A version is one folder in each of three Triton models, so it is placed by three renames, the captioner's last. Whoever
dies between them leaves `.staged/<version>`, and `recover`, which every start and every publish begins with, sets that
version aside. Nothing but version folders is ever put beside them: Triton loads every version of a model anew when
anything else in its folder changes.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import py_compile
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
from captioner.artifacts.repository_templates import CODE
from captioner.errors import ArtefactBroken, RepositoryBusy
from captioner.wire import CAPTIONER, PREPROCESS, VISION_ENCODER

VERSIONED = (VISION_ENCODER, PREPROCESS, CAPTIONER)  # in the order of their renames
STAGED, QUARANTINE, LOCK, WHY = ".staged", ".quarantine", ".lock", "why.json"
_OLD_QUARANTINE = ".aside"  # the folder in repositories of version 0.1; `recover` renames it
EXPORTED, EXPORT_SECONDS = ".exported-", 24 * 3600  # no export takes a day


Leaving = Literal["refused", "rolled back"]


@dataclass(frozen=True)
class Quarantined:
    """A version that is served no longer, or never was. `when` is in seconds since 1970."""

    version: int
    state: Leaving
    reason: str
    when: float


class VersionStore:
    """The repository in `path`; ArtefactBroken where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / CAPTIONER).is_dir():
            raise ArtefactBroken(f"{path} is no model repository: it has no folder {CAPTIONER}")

    def numbers(self) -> list[int]:
        """Every version of the captioner, ascending, whether it can be read or not."""
        found = (path.parent.name for path in (self.path / CAPTIONER).glob(f"*/{MANIFEST}"))
        return sorted(int(name) for name in found if name.isdecimal())

    def versions(self) -> dict[int, Manifest]:
        """Every complete version by number, ascending; those of another manifest format are left out."""
        found = {}
        for version in self.numbers():
            with suppress(ArtefactBroken):
                found[version] = Manifest.load(self.folder(CAPTIONER, version))
        return found

    def live(self) -> int:
        """The version that Triton serves; ArtefactBroken where nothing is published."""
        numbers = self.numbers()
        if not numbers:
            raise ArtefactBroken(
                f"{self.path} holds no published model; run: python -m export --repository {self.path}"
            )
        return numbers[-1]

    def verify(self) -> None:
        """Hashes every file of the live version; ArtefactBroken names the first that is not the exported one."""
        live = self.live()
        Manifest.load(self.folder(CAPTIONER, live)).verify(self.path, str(live))

    def folder(self, model: str, version: int) -> Path:
        """Where Triton looks for that version of `model`."""
        return self.path / model / str(version)

    def quarantined(self) -> dict[int, Quarantined]:
        """The versions that were refused or rolled back, by number."""
        found = {}
        for path in (self.path / QUARANTINE).glob(f"*/{WHY}"):
            with suppress(OSError, ValueError, TypeError):
                why = Quarantined(**json.loads(path.read_text("utf-8")))
                found[why.version] = why
        return dict(sorted(found.items()))

    def quarantined_revision(self, model: str, revision: str) -> Quarantined | None:
        """How that revision of a model was set aside, if it was; the last time."""
        for version, aside in reversed(self.quarantined().items()):
            with suppress(ArtefactBroken):
                manifest = Manifest.load(self.path / QUARANTINE / str(version) / CAPTIONER)
                if (manifest.model, manifest.revision) == (model, revision):
                    return aside
        return None

    @contextmanager
    def lock(self, wait_s: float = 0) -> Iterator[VersionStore]:
        """One at a time changes versions; RepositoryBusy after `wait_s`. The kernel lets go for a process that dies."""
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
        """Makes the empty folders of the next version, with the models' code in them, and returns its number."""
        taken = [*self.numbers(), *_numbered(self.path / QUARANTINE), *_numbered(self.path / STAGED)]
        version = max(taken, default=0) + 1
        for model in VERSIONED:
            folder = self.staged(version) / model
            folder.mkdir(parents=True)
            for name in CODE:
                if (self.folder(model, 1) / name).is_file():
                    _copy_code(self.folder(model, 1) / name, folder / name)
        return version

    def staged(self, version: int) -> Path:
        """Where that version's folders stand, by model, until they are placed."""
        return self.path / STAGED / str(version)

    def place(self, model: str, version: int) -> None:
        """Moves a staged folder to where Triton looks."""
        _move(self.staged(version) / model, self.folder(model, version), version)

    def confirm(self, version: int) -> None:
        """The version is published: a restart serves it."""
        shutil.rmtree(self.staged(version), ignore_errors=True)

    def quarantine(self, model: str, version: int) -> None:
        """Takes one model's folder of that version, placed or staged, out of Triton's sight."""
        for folder in (self.folder(model, version), self.staged(version) / model):
            if folder.is_dir():
                _move(folder, self.path / QUARANTINE / str(version) / model, version)

    def explain(self, version: int, state: Leaving, reason: str) -> None:
        """Keeps why a version was set aside, and forgets that it was under way."""
        path = self.path / QUARANTINE / str(version) / WHY
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(Quarantined(version, state, reason, time.time()))) + "\n", "utf-8")
        self.confirm(version)

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder on this disk to export into, gone afterwards; `recover` removes those whose process was killed."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=EXPORTED) as folder:
            yield Path(folder) / "exported"

    def recover(self) -> list[int]:
        """Sets aside what a publish left that died; the numbers of those versions. For the holder of the lock.

        Every version gets the code of this Captioner.
        """
        if (self.path / _OLD_QUARANTINE).is_dir() and not (self.path / QUARANTINE).exists():
            (self.path / _OLD_QUARANTINE).rename(self.path / QUARANTINE)
        dead = _numbered(self.path / STAGED)
        numbers = self.numbers()
        newest = max((number for number in numbers if number not in dead), default=0)
        # What was being taken back loses its captioner first.
        halves = {number for model in VERSIONED for number in _numbered(self.path / model) if number > max(newest, 1)}
        unexplained = set(_numbered(self.path / QUARANTINE)).difference(self.quarantined())
        for version in sorted({*dead, *halves, *unexplained}):
            for model in reversed(VERSIONED):
                self.quarantine(model, version)
            if version not in self.quarantined():
                self.explain(version, "refused", "the process that published it or took it back died")
            self.confirm(version)
        for model, version in itertools.product(VERSIONED, numbers):
            code, committed = self.folder(model, version) / "model.py", self.folder(model, 1) / "model.py"
            if code.is_file() and code.read_bytes() != committed.read_bytes():  # published by another Captioner
                _copy_code(committed, code)
        for folder in self.path.glob(f"{EXPORTED}*"):
            if time.time() - folder.stat().st_mtime > EXPORT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        return sorted({*dead, *halves, *unexplained})

    def prune(self, keep: int) -> list[int]:
        """Removes all but the newest `keep` versions, and as many quarantined ones; never the live one.

        Returns the numbers that are gone. Version 1 leaves the code that was committed.
        """
        old = list(self.numbers())[: -max(keep, 1)]
        for version in old:
            for model in reversed(VERSIONED):
                for path in _published(self.folder(model, version), version):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if version != 1:
                    shutil.rmtree(self.folder(model, version), ignore_errors=True)
        forgotten = list(self.quarantined())[:-keep] if keep else list(self.quarantined())
        for version in forgotten:
            shutil.rmtree(self.path / QUARANTINE / str(version), ignore_errors=True)
        return sorted([*old, *forgotten])


def _numbered(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _copy_code(source: Path, target: Path) -> None:
    made = target.with_name(f".{target.name}")
    shutil.copy2(source, made)
    made.replace(target)
    _compile(target)


def _compile(code: Path) -> None:
    """Left to Python, the bytecode would be written on the first load, and Triton would load the version once more."""
    if code.suffix == ".py" and code.is_file():
        py_compile.compile(str(code), doraise=True)


def _published(folder: Path, version: int) -> list[Path]:
    """What a version folder holds, its manifest first; of version 1 without the code that was cloned."""
    kept = CODE if version == 1 else ()
    found = [path for path in folder.glob("*") if path.name not in kept and path.name != "__pycache__"]
    return sorted(found, key=lambda path: path.name != MANIFEST)


def _move(source: Path, target: Path, version: int) -> None:
    """Moves a version's folder at once; that of version 1, whose code stays, file by file and its manifest last."""
    if version != 1:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in reversed(_published(source, version)):
        path.replace(target / path.name)
    _compile(target / "model.py")
