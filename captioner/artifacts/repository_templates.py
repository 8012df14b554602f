"""The files that make a folder a Triton model repository: each model's config.pbtxt and model.py.

In a checkout they are in `model_repository/`, which is itself a repository. A wheel carries them as package data; there
a user's repository is a data folder, and `install` fills it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from captioner.errors import ArtefactBroken
from captioner.wire import CAPTIONER, MODELS

CODE = ("model.py", ".gitkeep")  # in version 1 of each model; every published version gets a copy
_PACKAGE = Path(__file__).parents[1]
_PACKAGED = _PACKAGE / "model_repository"
_CHECKOUT = _PACKAGE.parent / "model_repository"
_RECORD = ".templates.json"  # sha256 of each installed template, to recognize files that an operator has edited


def templates() -> Path:
    """Return the folder of the templates: package data, or `model_repository/` of the checkout."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def default_repository() -> Path:
    """Return the repository that is used unless one is named: $MODEL_REPOSITORY, the checkout's, or the user's.

    The user's is `captioner/model_repository` in $XDG_DATA_HOME, by default ~/.local/share.
    """
    if named := os.environ.get("MODEL_REPOSITORY"):
        return Path(named)
    if not _PACKAGED.is_dir():
        return _CHECKOUT
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "captioner" / "model_repository"


def install(repository: Path) -> list[str]:
    """Create the templates in `repository`, and replace those of an older release; return the files left alone.

    A file that an operator has edited is never replaced. Raises ArtefactBroken for a folder that holds other things.
    A repository that cannot be written is left as it is.
    """
    source = templates()
    if repository.resolve() == source.resolve():
        return []
    if repository.is_dir() and any(repository.iterdir()) and not (repository / CAPTIONER / "config.pbtxt").is_file():
        raise ArtefactBroken(f"{repository} is not a model repository: it holds files, but no {CAPTIONER}/config.pbtxt")
    if repository.exists() and not os.access(repository, os.W_OK):
        return []
    record = repository / _RECORD
    known = _read(record)
    edited = []
    for name in _names(source):
        new, target = source / name, repository / name
        if target.is_file():
            there = _sha256(target)
            if there == _sha256(new):
                continue
            if target.name == "config.pbtxt" and there != known.get(name):
                edited.append(name)
                continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new, target)
    hashes = {name: _sha256(source / name) for name in _names(source) if name not in edited}
    if known != known | hashes:
        record.write_text(json.dumps(known | hashes, indent=1) + "\n", "utf-8")
    return edited


def _names(source: Path) -> list[str]:
    """The templates' paths, relative to the repository."""
    wanted = [f"{model}/{name}" for model in MODELS for name in ("config.pbtxt", *(f"1/{code}" for code in CODE))]
    return [name for name in wanted if (source / name).is_file()]


def _read(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
