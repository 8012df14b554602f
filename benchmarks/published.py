"""Export and publish seeded models once; keep them under build/benchmarks until the code that makes them changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from benchmarks import seeded
from benchmarks.seeded import SEEDED, Size
from captioner.artifacts import repository_templates
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.repository_templates import CODE
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.embedded import EMBEDDED, EMBEDDED_FOLDER
from captioner.families import family
from captioner.families.base import Source
from captioner.hub.resolve import ResolvedModel
from captioner.publish.publish import export_and_publish
from captioner.wire import CAPTIONER, VISION_ENCODER

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build" / "benchmarks"
EMBEDDED_NAME = "embedded"  # the shipped model with its real weights; it has one size
NAMES = (*SEEDED, EMBEDDED_NAME)


@dataclass(frozen=True)
class Published:
    """One model: as a Hugging Face model in `folder`, and as a published version in `repository`."""

    name: str
    size: Size
    folder: Path
    repository: Path

    @property
    def version(self) -> Path:
        """The captioner's version folder."""
        return self.repository / CAPTIONER / "1"

    @property
    def onnx_path(self) -> Path:
        """The exported vision encoder."""
        return self.repository / VISION_ENCODER / "1" / "model.onnx"

    def manifest(self) -> Manifest:
        """Load the manifest that the export wrote."""
        return Manifest.load(self.version)

    def source(self) -> Source:
        """Load the original, with its own generate()."""
        model_type = json.loads((self.folder / "config.json").read_text())["model_type"]
        return family(model_type).load(self.folder)


def published(name: str, size: Size, seed: int = 0) -> Published:
    """Return the model called `name`, one of NAMES; make, export and publish it if it is not in CACHE."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    target = CACHE / f"{name}-{size}-{seed}-{_code_hash()}"
    if not target.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=CACHE))
        try:
            folder = EMBEDDED_FOLDER
            if name != EMBEDDED_NAME:
                folder = staged / "model"
                folder.mkdir()
                seeded.save(name, folder, size, seed)
            model = ResolvedModel(EMBEDDED if name == EMBEDDED_NAME else name, f"{seed:040x}", folder)
            export_and_publish(model, VersionStore(empty_repository(staged / "repository")), (), lambda _: None)
            for outdated in CACHE.glob(f"{name}-{size}-{seed}-*"):
                shutil.rmtree(outdated, ignore_errors=True)
            staged.replace(target)
        except BaseException as error:
            shutil.rmtree(staged, ignore_errors=True)
            if not (isinstance(error, OSError) and target.is_dir()):  # another process was faster
                raise
    folder = EMBEDDED_FOLDER if name == EMBEDDED_NAME else target / "model"
    return Published(name, size, folder, target / "repository")


def empty_repository(folder: Path) -> Path:
    """Fill `folder` with the committed files of model_repository, without published versions; return it."""
    repository_templates.install(folder)
    return folder


def served_copy(source: Published, folder: Path) -> Path:
    """Return a new repository with the current code and configs; published files are hard links if possible."""
    repository = empty_repository(folder)
    for model in VERSIONED:
        for path in sorted((source.repository / model / "1").rglob("*")):
            target = repository / path.relative_to(source.repository)
            if path.is_file() and path.name not in CODE:
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(path)
                except OSError:  # another file system
                    shutil.copy2(path, target)
    return repository


def _code_hash() -> str:
    """Return a hash of the code and the library versions that decide what is published."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for folder in ("benchmarks/seeded", "captioner/families", "captioner/decoders", "captioner/artifacts", "export"):
        for path in sorted((ROOT / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
