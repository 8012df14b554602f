"""A model's name to a folder on this disk: the embedded model, a folder, or a Hugging Face id at a revision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import ModelUnsupported

EMBEDDED = "captioner-embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
# No pickles and no code: what is downloaded can only be data.
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]


@dataclass(frozen=True)
class Found:
    """A model on this disk. `revision` is the Hub's commit, or a hash of the weights for a local folder."""

    name: str
    revision: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:12]}"


def find(model: str, revision: str | None = None) -> Found:
    """The model called `model`; ModelUnsupported when it is neither here nor to be had."""
    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model)
    if folder.is_dir():
        return Found(model if model == EMBEDDED else folder.resolve().name, _weights_hash(folder), folder)
    # An import of half a second that a local model does without.
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # the client raises a dozen types; all mean that there is no folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelUnsupported(f"{model!r} is no folder here and cannot be had from the Hub: {reason}") from error
    _check_safetensors(snapshot)
    return Found(model, snapshot.name, snapshot)


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
