"""Seeded models exported and published once, kept under build/benchmarks until their making changes."""

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
KEPT = ROOT / "build" / "benchmarks"
EMBEDDED_NAME = "embedded"  # the real model that travels with the code; it has one size
NAMES = (*SEEDED, EMBEDDED_NAME)


@dataclass(frozen=True)
class Published:
    """One model, as its authors would publish it in `folder` and as we do in `repository`."""

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
        """What the export found."""
        return Manifest.load(self.version)

    def source(self) -> Source:
        """The original, with its own generate()."""
        model_type = json.loads((self.folder / "config.json").read_text())["model_type"]
        return family(model_type).load(self.folder)


def published(name: str, size: Size, seed: int = 0, kept: Path = KEPT) -> Published:
    """The model called `name`, one of NAMES; made and exported if it is not there yet."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = kept / f"{name}-{size}-{seed}-{_making()}"
    if not place.is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=kept))
        try:
            folder = EMBEDDED_FOLDER
            if name != EMBEDDED_NAME:
                folder = made / "model"
                folder.mkdir()
                seeded.save(name, folder, size, seed)
            found = ResolvedModel(EMBEDDED if name == EMBEDDED_NAME else name, f"{seed:040x}", folder)
            export_and_publish(found, VersionStore(empty_repository(made / "repository")), (), lambda _: None)
            for outdated in kept.glob(f"{name}-{size}-{seed}-*"):
                shutil.rmtree(outdated, ignore_errors=True)
            made.replace(place)
        except BaseException as error:
            shutil.rmtree(made, ignore_errors=True)
            if not (isinstance(error, OSError) and place.is_dir()):  # another process was faster
                raise
    folder = EMBEDDED_FOLDER if name == EMBEDDED_NAME else place / "model"
    return Published(name, size, folder, place / "repository")


def empty_repository(folder: Path) -> Path:
    """The committed part of model_repository, without what may have been published there."""
    repository_templates.install(folder)
    return folder


def served_copy(source: Published, folder: Path) -> Path:
    """A repository of its own with today's code and configs; the published files are hard links where that works."""
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


def _making() -> str:
    """A hash of all that decides what is published: code and versions."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for folder in ("benchmarks/seeded", "captioner/families", "captioner/decoders", "captioner/artifacts", "export"):
        for path in sorted((ROOT / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
