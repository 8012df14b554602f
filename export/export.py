"""The steps from a model's name to a published version, each announced before it is made."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from captioner import hub
from captioner.errors import ModelUnsupported
from captioner.families import family
from captioner.families.base import Source
from captioner.manifest import Manifest
from captioner.wire import CAPTIONER, VISION_ENCODER
from export import publish
from export.decoder import export_decoder
from export.parity import check_parity
from export.vision_encoder import export_vision_encoder, onnx_features


def export(found: hub.Found, repository: Path, say: Callable[[str], None]) -> int:
    """Exports a model's folder into the next version of `repository` and returns the version's number.

    Raises ModelUnsupported or ArtefactBroken; what is published already stays as it is.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    version = publish.next_version(repository)
    model_type = _model_type(found.folder)
    say(f"loading {found} ({model_type})")
    try:
        source = family(model_type).load(found.folder)
    except OSError as error:  # transformers' own word for a file that is missing or cannot be read
        raise ModelUnsupported(f"{found} cannot be loaded: {error}") from error
    staged = publish.stage(repository, version)
    say("exporting the vision encoder to ONNX")
    with torch.inference_mode(False):
        onnx_path = export_vision_encoder(
            source, staged[VISION_ENCODER], {"model": found.name, "revision": found.revision}
        )
    say("writing the decoder and the tokenizer")
    export_decoder(source, staged[CAPTIONER])
    say("comparing with the original")
    manifest = _manifest(source, model_type, found, onnx_path, publish.hashes(staged))
    say(str(check_parity(source, onnx_path, staged[CAPTIONER], manifest)))
    for path in staged.values():
        manifest.save(path)
    publish.publish(staged, version)
    say(f"published version {version} in {os.path.relpath(repository)}")
    return version


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnsupported(f"{folder / 'config.json'} names no model_type: {error!r}") from error


def _manifest(source: Source, family: str, found: hub.Found, onnx_path: Path, files: dict[str, str]) -> Manifest:
    blank = torch.zeros(1, source.image.height, source.image.width, 3, dtype=torch.uint8).numpy()
    _, tokens, width = onnx_features(onnx_path, blank).shape
    return source.manifest(
        family=family, model=found.name, revision=found.revision, feature_shape=(tokens, width), files=files
    )
