"""Every version that a repository has or had, as people ask for it: which is live, what it is, why one is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.artifacts.manifest import NAME, Manifest
from captioner.artifacts.version_store import QUARANTINE, VERSIONED, Leaving, VersionStore
from captioner.errors import ArtefactBroken
from captioner.wire import CAPTIONER


@dataclass(frozen=True)
class Version:
    """One row. `when` it was published or set aside, in seconds since 1970; `size` in bytes."""

    number: int
    state: Literal["live", "before", "kept"] | Leaving
    manifest: Manifest
    size: int
    when: float
    reason: str = ""


def versions(repository: VersionStore) -> list[Version]:
    """The newest first. A version of another manifest format is left out; `captioner doctor` names it."""
    placed = repository.versions()
    newest: tuple[Literal["live", "before"], ...] = ("live", "before")
    states = dict(zip(reversed(placed), newest, strict=False))
    rows = []
    for number, manifest in placed.items():
        folders = [repository.folder(model, number) for model in VERSIONED]
        when = (repository.folder(CAPTIONER, number) / NAME).stat().st_mtime
        rows.append(Version(number, states.get(number, "kept"), manifest, _size(folders), when))
    for number, aside in repository.quarantined().items():
        folder = repository.path / QUARANTINE / str(number)
        try:
            manifest = Manifest.load(folder / CAPTIONER)
        except ArtefactBroken:
            continue
        rows.append(Version(number, aside.state, manifest, _size([folder]), aside.when, aside.reason))
    return sorted(rows, key=lambda row: -row.number)


def _size(folders: list[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
