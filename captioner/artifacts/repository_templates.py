"""The files that make a folder a Triton model repository: each model's config.pbtxt and model.py.

In a checkout they are in `model_repository/`, which is itself a repository. A wheel carries them as package data; there
a user's repository is a data folder, and `install` fills it.
"""

from __future__ import annotations

import json
import os
import py_compile
import secrets
import shutil
from pathlib import Path

from captioner.artifacts.manifest import sha256
from captioner.errors import ArtefactBroken
from captioner.wire import CAPTIONER, MODELS

CODE = ("model.py", ".gitkeep")  # in version 1 of each model; every published version gets a copy
_PACKAGE = Path(__file__).parents[1]
_PACKAGED = _PACKAGE / "model_repository"
_CHECKOUT = _PACKAGE.parent / "model_repository"
_PARTIAL = ".partial-"
_RECORD = ".templates.json"  # sha256 of each installed template, to recognize files that an operator has edited
# The config.pbtxt of release 0.1, which kept no record: they are unedited templates too.
_RELEASED = {
    "captioner/config.pbtxt": "c049f1cac9e5855fc1e7846668d3dda2629ef7539d191359e7e9c08d15cb5913",
    "preprocess/config.pbtxt": "dc05831ad1dbcded3ef2ca9358c5650fd968e94eace63a82f5021c66d23fefdc",
    "vision_encoder/config.pbtxt": "581f515f84f6d5d630cf63474371fd81fc32215618dc53f1154b643832811421",
}


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

    A config.pbtxt that an operator has edited is never replaced. A repository that cannot be written is left as it is.
    Raises ArtefactBroken for a folder that holds other things, and if the folder cannot be created.
    """
    source = templates()
    if repository.resolve() == source.resolve():
        return []
    # In this order: an install that runs at the same time, on a shared volume, creates config.pbtxt first.
    if _holds_files(repository) and not (repository / CAPTIONER / "config.pbtxt").is_file():
        raise ArtefactBroken(f"{repository} is not a model repository: it holds files, but no {CAPTIONER}/config.pbtxt")
    if (repository / CAPTIONER).is_dir() and not os.access(repository, os.W_OK):
        return []
    try:
        return _install(source, repository)
    except OSError as error:
        raise ArtefactBroken(f"the model repository {repository} cannot be written: {error}") from error


def _install(source: Path, repository: Path) -> list[str]:
    record = repository / _RECORD
    known = _read(record)
    hashes, edited = {}, []
    for name in _names(source):
        target, hashes[name] = repository / name, sha256(source / name)
        found = sha256(target) if target.is_file() else None
        unedited = (None, hashes[name], known.get(name), _RELEASED.get(name))
        if target.name == "config.pbtxt" and found not in unedited:
            edited.append(name)
            del hashes[name]
        elif found != hashes[name]:
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(source / name, target)
    if known != known | hashes:
        record.write_text(json.dumps(known | hashes, indent=1) + "\n", "utf-8")
    return edited


def _holds_files(repository: Path) -> bool:
    """Return whether there are files other than partial copies. Folders do not count: an ext4 volume has lost+found."""
    return any(path.is_file() and not path.name.startswith(_PARTIAL) for path in repository.rglob("*"))


def copy_file(source: Path, target: Path) -> None:
    """Replace `target` in one step, so that no process reads a partial file, and compile Python code."""
    partial = target.with_name(f"{_PARTIAL}{secrets.token_hex(4)}")
    shutil.copyfile(source, partial)
    partial.replace(target)
    compile_code(target)


def compile_code(path: Path) -> None:
    """Write the bytecode now. If Python wrote it on the first load, Triton would see a change and reload the model."""
    if path.suffix == ".py" and path.is_file():
        py_compile.compile(str(path), doraise=True)


def _names(source: Path) -> list[str]:
    """Return the templates' paths, relative to the repository."""
    wanted = [f"{model}/{name}" for model in MODELS for name in ("config.pbtxt", *(f"1/{code}" for code in CODE))]
    return [name for name in wanted if (source / name).is_file()]


def _read(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
