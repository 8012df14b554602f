"""A model's name to a folder on this disk: the embedded model, a folder, or a Hugging Face id at a revision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from captioner.embedded import EMBEDDED, EMBEDDED_FOLDER
from captioner.errors import ModelMissing, ModelUnsupported, StartupRefused

_LONGEST_REVISION = 200  # bytes; it becomes a path in the cache


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk. `revision` is the Hub's commit, or a hash of the weights for a local folder."""

    name: str
    revision: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:12]}"


def parse(text: str) -> tuple[str, str | None]:
    """`MODEL` or `MODEL@REVISION` as (model, revision); ModelMissing says why it can be neither.

    The embedded model's name, or a folder that is here, is taken as it is, with any @ in its path.
    """
    if local_folder(text):
        return text, None
    model, at, revision = text.partition("@")
    if not local_folder(model):
        _check_id(model)
    if at:
        _check_revision(model, revision)
    return model, revision if at else None


def find(model: str, revision: str | None = None) -> ResolvedModel:
    """The model called `model`, from the Hub if it must be; see `pull` for what is raised where it cannot be had."""
    if folder := local_folder(model):
        if revision is not None:
            raise ModelMissing(f"{model!r} is {folder.resolve()} on this disk, which has no revision {revision!r}")
        return ResolvedModel(model if model == EMBEDDED else folder.resolve().name, _weights_hash(folder), folder)
    _check_id(model)
    if revision is not None:
        _check_revision(model, revision)
    # An import of half a second that a local model does without.
    from captioner.hub.pull import pull

    snapshot = pull(model, revision)
    return ResolvedModel(model, snapshot.commit, snapshot.folder)


def latest_commit(model: str, branch: str) -> str:
    """The commit that a branch of a Hub id is now, by one small request; nothing is downloaded.

    Raises ModelMissing, AccessDenied or HubUnreachable.
    """
    if folder := local_folder(model):
        raise ModelMissing(f"{model!r} is {folder.resolve()} on this disk, which has no branches")
    _check_id(model)
    _check_revision(model, branch)
    from captioner.hub import api

    return api.latest_commit(model, branch)


def local_folder(model: str) -> Path | None:
    """Where a model that needs no Hub lies."""
    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model)
    try:
        return folder if model and folder.is_dir() else None
    except OSError:  # longer than any path
        return None


def _check_id(model: str) -> None:
    """ModelMissing for what the Hub would not take for a name."""
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, if not marked so
    except ImportError as error:
        raise StartupRefused(f"the Hub needs huggingface_hub ({error}); pip install 'captioner[export]'") from error
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ModelMissing(f"{model!r} is no folder here and no Hugging Face id: {error}") from error


def _check_revision(model: str, revision: str) -> None:
    """ModelMissing for what git would not take for a branch or tag."""
    if not (
        revision.isprintable()
        and len(revision.encode()) <= _LONGEST_REVISION
        and not any(character in revision for character in " ~^:?*[\\")
        and not any(pair in revision for pair in ("..", "@{"))
        and all(step and step[0] not in ".-" and not step.endswith((".", ".lock")) for step in revision.split("/"))
    ):
        raise ModelMissing(f"{revision!r} can be no branch, tag or commit of {model!r}")


def _weights_hash(folder: Path) -> str:
    _check_safetensors(folder)
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(path for kind in ("*.safetensors", "*.json", "*.jinja") for path in folder.glob(kind)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_safetensors(folder: Path) -> None:
    """Other formats of weights are pickles, which run what they hold."""
    if not any(folder.glob("*.safetensors")):
        raise ModelUnsupported(f"{folder} holds no .safetensors file")
