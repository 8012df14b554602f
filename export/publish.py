"""Version folders of the model repository: staged beside their place, renamed into it whole.

The `captioner` folder goes last, and its manifest holds the hash of every file. A process that dies between two renames
leaves the version before complete and the new one without its entry; the next export, which `captioner up` begins with,
publishes it again. A server that is started in between without one would put the old decoder behind the new encoder.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from captioner.errors import ArtefactBroken
from captioner.manifest import NAME as MANIFEST
from captioner.manifest import Manifest, sha256
from captioner.wire import CAPTIONER, PREPROCESS, VISION_ENCODER

PUBLISHED = (VISION_ENCODER, PREPROCESS, CAPTIONER)  # in the order of their renames
COMMITTED = ("model.py", ".gitkeep")  # what every version folder takes over from version 1


def published(repository: Path) -> dict[int, Manifest]:
    """Every complete version by number; those of another manifest format are left out."""
    versions = {}
    for version in _versions(repository):
        with contextlib.suppress(ArtefactBroken):
            versions[version] = Manifest.load(repository / CAPTIONER / str(version))
    return versions


def next_version(repository: Path) -> int:
    """1 in a repository as it was cloned, then one more than the newest."""
    return max(_versions(repository), default=0) + 1


def _versions(repository: Path) -> list[int]:
    model = repository / CAPTIONER
    if not model.is_dir():
        raise ArtefactBroken(f"{repository} is no model repository: it has no folder {CAPTIONER}")
    return [int(path.parent.name) for path in model.glob(f"*/{MANIFEST}") if path.parent.name.isdigit()]


def stage(repository: Path, version: int) -> dict[str, Path]:
    """Empty folders to export into, by Triton model, holding only what is committed."""
    staged = {}
    for model in PUBLISHED:
        folder = repository / model / f".{version}-staged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in COMMITTED:
            if (repository / model / "1" / name).is_file():
                shutil.copy2(repository / model / "1" / name, folder)
        staged[model] = folder
    return staged


def hashes(staged: dict[str, Path]) -> dict[str, str]:
    """The sha256 of every exported file, by "<triton model>/<file>"."""
    return {
        f"{model}/{path.relative_to(folder).as_posix()}": sha256(path)
        for model, folder in staged.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (*COMMITTED, MANIFEST)
    }


def publish(staged: dict[str, Path], version: int) -> None:
    """Renames the staged folders into place."""
    for model in PUBLISHED:
        folder = staged[model]
        target = folder.parent / str(version)
        replaced = folder.parent / f".{version}-replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():  # version 1 as it was cloned
            target.rename(replaced)
        folder.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
