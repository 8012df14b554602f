"""The rows of `captioner versions`: each version that a repository holds or has quarantined, with state and reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.artifacts.manifest import NAME, Manifest
from captioner.artifacts.version_store import QUARANTINE, VERSIONED, QuarantineState, VersionStore
from captioner.errors import ArtefactBroken
from captioner.wire import CAPTIONER


@dataclass(frozen=True)
class Version:
    """One row. `when`: seconds since 1970 of the publish or of the quarantine; `size` in bytes.

    A rollback makes the version in state "before" live.
    """

    number: int
    state: Literal["live", "before", "kept"] | QuarantineState
    manifest: Manifest
    size: int
    when: float
    reason: str = ""


def versions(store: VersionStore) -> list[Version]:
    """Return all versions, newest first.

    Versions of another manifest format are left out; `captioner doctor` names them.
    """
    published = store.versions()
    newest: tuple[Literal["live", "before"], ...] = ("live", "before")
    states = dict(zip(reversed(published), newest, strict=False))
    rows = []
    for number, manifest in published.items():
        folders = [store.folder(model, number) for model in VERSIONED]
        when = (store.folder(CAPTIONER, number) / NAME).stat().st_mtime
        rows.append(Version(number, states.get(number, "kept"), manifest, _size(folders), when))
    for number, entry in store.quarantined().items():
        folder = store.path / QUARANTINE / str(number)
        try:
            manifest = Manifest.load(folder / CAPTIONER)
        except ArtefactBroken:
            continue
        rows.append(Version(number, entry.state, manifest, _size([folder]), entry.when, entry.reason))
    return sorted(rows, key=lambda row: -row.number)


def _size(folders: list[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
