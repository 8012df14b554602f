"""The steps from a model's name to a folder that can be published, each announced before it is made."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from captioner.artifacts.manifest import GOLDEN_FEATURES, GOLDEN_IMAGE, NAME, Manifest, sha256
from captioner.artifacts.version_store import VERSIONED
from captioner.errors import ModelUnsupported
from captioner.examples import FOLDER
from captioner.families import family
from captioner.families.base import Source
from captioner.hub import resolve
from captioner.image.decode import load_pixels
from captioner.wire import CAPTIONER, VISION_ENCODER, EncoderPrecision
from export.calibration_images import HELD_OUT, calibration_pixels
from export.model_card import read_card
from export.onnx_export import export_vision_encoder, onnx_features
from export.parity import check_parity, golden_sample
from export.precision import convert_precision

CHECK_PHOTO = FOLDER / "cat.jpg"


def export(
    found: resolve.ResolvedModel,
    folder: Path,
    say: Callable[[str], None],
    *,
    precision: EncoderPrecision = "fp32",
    calibration: Path | None = None,
) -> Manifest:
    """Exports a model into `folder`, a sub-folder for each Triton model that has versions; whole or not at all.

    `precision` is the vision encoder's; `calibration` holds photos to lower it with, None takes our own. Raises
    ModelUnsupported or ArtefactBroken.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model_type = _model_type(found.folder)
    say(f"loading {found} ({model_type})")
    try:
        source = family(model_type).load(found.folder)
    except OSError as error:  # transformers' own word for a file that is missing or cannot be read
        raise ModelUnsupported(f"{found} cannot be loaded: {error}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        manifest = _write(source, model_type, found, made, say, precision, calibration)
        made.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return manifest


def export_decoder(source: Source, folder: Path) -> None:
    """Write `folder/decoder/{config.json, model.safetensors}` and `folder/tokenizer.json`."""
    source.decoder.save_pretrained(folder / "decoder")
    # save_pretrained makes the file readable by its owner alone; servers may run as another user.
    (folder / "decoder" / "model.safetensors").chmod(0o644)
    source.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _write(
    source: Source,
    model_type: str,
    found: resolve.ResolvedModel,
    made: Path,
    say: Callable[[str], None],
    precision: EncoderPrecision,
    calibration: Path | None,
) -> Manifest:
    for model in VERSIONED:
        (made / model).mkdir()
    decoder = made / CAPTIONER
    say("exporting the vision encoder to ONNX")
    with torch.inference_mode(False):
        metadata = {"model": found.name, "revision": found.revision}
        onnx_path = export_vision_encoder(source, made / VISION_ENCODER, metadata)
    photos = None
    if precision != "fp32":
        pixels = calibration_pixels(source.image, calibration)
        fitted, photos = pixels[:-HELD_OUT], pixels[-HELD_OUT:]
        convert_precision(onnx_path, precision, fitted, say)
    say("writing the decoder and the tokenizer")
    export_decoder(source, decoder)
    say("comparing with the original")
    _write_check_photo(decoder / GOLDEN_IMAGE, tiled=source.image.most_tiles > 0)
    pixels, info = load_pixels((decoder / GOLDEN_IMAGE).read_bytes(), source.image)
    (features,) = onnx_features(onnx_path, pixels[np.newaxis])
    tokens = features.shape[0] // (info.tile_rows * info.tile_columns + 1)
    manifest = source.manifest(
        family=model_type,
        model=found.name,
        revision=found.revision,
        feature_shape=(tokens, features.shape[1]),
        files={},
        card=read_card(found.folder),
        precision=precision,
    )
    say(str(check_parity(source, onnx_path, decoder, manifest, photos)))
    save_file({"features": torch.from_numpy(features).contiguous()}, decoder / GOLDEN_FEATURES)
    (decoder / GOLDEN_FEATURES).chmod(0o644)  # as in export_decoder
    manifest = replace(manifest, golden_sample=golden_sample(features, info, decoder, manifest))
    manifest = replace(manifest, files=_hashes(made))
    for model in VERSIONED:
        manifest.save(made / model)
    return manifest


def _write_check_photo(path: Path, tiled: bool) -> None:
    """A photo; for a model that cuts tiles a low strip of it, four of them where the whole would be twelve."""
    if not tiled:
        shutil.copyfile(CHECK_PHOTO, path)
        return
    with Image.open(CHECK_PHOTO) as photo:
        middle, half = photo.height // 2, photo.width // 12
        photo.crop((0, middle - half, photo.width, middle + half)).save(path, quality=95)


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnsupported(f"{folder / 'config.json'} names no model_type: {error!r}") from error


def _hashes(made: Path) -> dict[str, str]:
    """The sha256 of every exported file, by "<triton model>/<file>"."""
    files = sorted(path for path in made.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(made).as_posix(): sha256(path) for path in files}
