"""From a model's name to a folder on this disk: the embedded model, a local folder, or a Hub id at a revision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from captioner.embedded import EMBEDDED, EMBEDDED_FOLDER
from captioner.errors import ModelMissing, ModelUnsupported, StartupRefused
from captioner.hashing import add_file

_MAX_REVISION = 200  # bytes; it becomes a path in the cache


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk. `revision` is the Hub's commit, or a hash of the weights for a local folder."""

    name: str
    revision: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:12]}"


def parse(text: str) -> tuple[str, str | None]:
    """Split `MODEL` or `MODEL@REVISION` into (model, revision). Raises ModelMissing for invalid names.

    The embedded model's name and the path of an existing folder are returned whole, even with an @ in the path.
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
    """Return the model called `model`; a Hub id is pulled. Raises what `pull` raises."""
    if folder := local_folder(model):
        refuse_revision(model, folder, revision)
        return ResolvedModel(model if model == EMBEDDED else folder.resolve().name, _weights_hash(folder), folder)
    _check_id(model)
    if revision is not None:
        _check_revision(model, revision)
    # Imported here because it takes half a second, which a local model does not need.
    from captioner.hub.pull import pull

    snapshot = pull(model, revision)
    return ResolvedModel(model, snapshot.commit, snapshot.folder)


def latest_commit(model: str, branch: str) -> str:
    """Return the commit that a branch of a Hub id points to, by one small request; download nothing.

    Raises ModelMissing, AccessDenied or HubUnreachable.
    """
    if folder := local_folder(model):
        raise ModelMissing(f"{model!r} is {folder.resolve()} on this disk; a folder does not have branches")
    _check_id(model)
    _check_revision(model, branch)
    from captioner.hub import api

    return api.latest_commit(model, branch)


def refuse_revision(model: str, folder: Path, revision: str | None) -> None:
    """Raise ModelMissing for a revision of a local folder."""
    if revision is not None:
        raise ModelMissing(
            f"{model!r} is {folder.resolve()} on this disk; a folder does not have a revision {revision!r}"
        )


def local_folder(model: str) -> Path | None:
    """Return the folder of a model that is not on the Hub, or None."""
    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model)
    try:
        return folder if model and folder.is_dir() else None
    except OSError:  # the text is longer than any path
        return None


def _check_id(model: str) -> None:
    """Raise ModelMissing for a text that is not a valid Hub id."""
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not exported
    except ImportError as error:
        raise StartupRefused(f"the Hub needs huggingface_hub ({error}); pip install 'captioner[export]'") from error
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ModelMissing(f"{model!r} is neither a folder here nor a Hugging Face id: {error}") from error


def _check_revision(model: str, revision: str) -> None:
    """Raise ModelMissing for a text that git does not accept as a branch or tag."""
    if not (
        revision.isprintable()
        and len(revision.encode()) <= _MAX_REVISION
        and not any(character in revision for character in " ~^:?*[\\")
        and not any(pair in revision for pair in ("..", "@{"))
        and all(step and step[0] not in ".-" and not step.endswith((".", ".lock")) for step in revision.split("/"))
    ):
        raise ModelMissing(f"{revision!r} is not a valid name of a branch, tag or commit of {model!r}")


def _weights_hash(folder: Path) -> str:
    check_safetensors(folder)
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(path for kind in ("*.safetensors", "*.json", "*.jinja") for path in folder.glob(kind)):
        add_file(digest, path)
    return digest.hexdigest()


def check_safetensors(folder: Path) -> None:
    """Raise ModelUnsupported without safetensors: weights in other formats are pickles, which can run code."""
    if not any(folder.glob("*.safetensors")):
        raise ModelUnsupported(f"{folder} has no .safetensors file")
