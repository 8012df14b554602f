"""Export a model into a folder that can be published; each step is logged before it begins.

1. Load the model through its family. 2. Export the vision encoder to ONNX. 3. Convert its precision. 4. Write the
decoder and the tokenizer. 5. Compare the exported files with the original. 6. Write the golden sample and the manifest.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedModel

from captioner.artifacts.manifest import GOLDEN_FEATURES, GOLDEN_IMAGE, NAME, Manifest, sha256
from captioner.artifacts.version_store import VERSIONED
from captioner.errors import ModelUnsupported
from captioner.examples import FOLDER
from captioner.families import family
from captioner.families.base import Source
from captioner.hub.resolve import ResolvedModel
from captioner.image.decode import load_pixels
from captioner.wire import CAPTIONER, VISION_ENCODER, EncoderPrecision
from export.calibration_images import HELD_OUT, calibration_pixels
from export.model_card import read_card
from export.onnx_export import export_vision_encoder, onnx_features
from export.parity import check_parity, golden_sample
from export.precision import Log, convert_precision

GOLDEN_PHOTO = FOLDER / "cat.jpg"


def export(
    found: ResolvedModel,
    folder: Path,
    log: Log,
    *,
    precision: EncoderPrecision = "fp32",
    calibration: Path | None = None,
) -> Manifest:
    """Export a model into `folder`, with a subfolder for each versioned Triton model; return its manifest.

    An error leaves no folder. `precision` is the vision encoder's; `calibration` is a folder of photos for int8, by
    default the shipped ones. Raises ModelUnsupported or ArtefactBroken.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model_type = read_model_type(found.folder)
    log(f"loading {found} ({model_type})")
    try:
        source = family(model_type).load(found.folder)
    except OSError as error:  # transformers raises it for a missing or unreadable file
        raise ModelUnsupported(f"{found} cannot be loaded: {error}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        manifest = _write(source, model_type, found, staging, log, precision, calibration)
        staging.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def export_decoder(source: Source, folder: Path) -> None:
    """Write `folder/decoder/{config.json, model.safetensors}` and `folder/tokenizer.json`."""
    source.decoder.save_pretrained(folder / "decoder", state_dict=_compact(source.decoder))
    # save_pretrained makes the file readable by its owner alone; servers may run as another user.
    (folder / "decoder" / "model.safetensors").chmod(0o644)
    source.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _compact(decoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights in the smallest floating-point type that holds all of them exactly.

    Most models are published in 16 bits and are loaded here in 32, in which they would take twice the disk.
    """
    state = decoder.state_dict()
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in floating):
            break
    else:
        return state
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}  # by memory: tied weights stay one tensor

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return converted.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))

    return {name: convert(tensor) for name, tensor in state.items()}


def _write(
    source: Source,
    model_type: str,
    found: ResolvedModel,
    folder: Path,
    log: Log,
    precision: EncoderPrecision,
    calibration: Path | None,
) -> Manifest:
    for model in VERSIONED:
        (folder / model).mkdir()
    captioner = folder / CAPTIONER
    log("exporting the vision encoder to ONNX")
    with torch.inference_mode(False):
        metadata = {"model": found.name, "revision": found.revision}
        onnx_path = export_vision_encoder(source, folder / VISION_ENCODER, metadata)
    photos = None
    if precision != "fp32":
        pixels = calibration_pixels(source.image, calibration)
        photos = pixels[-HELD_OUT:]
        convert_precision(onnx_path, precision, pixels[:-HELD_OUT], log)
    log("writing the decoder and the tokenizer")
    export_decoder(source, captioner)
    log("comparing the export with the original")
    _write_golden_image(captioner / GOLDEN_IMAGE, whole=not any(source.image.max_grid))
    pixels, info = load_pixels((captioner / GOLDEN_IMAGE).read_bytes(), source.image)
    (features,) = onnx_features(onnx_path, pixels[np.newaxis])
    tokens = features.shape[0] // source.image.parts(info.grid_rows, info.grid_columns)
    manifest = source.manifest(
        family=model_type,
        model=found.name,
        revision=found.revision,
        feature_shape=(tokens, features.shape[1]),
        files={},
        card=read_card(found.folder),
        precision=precision,
    )
    features = features.reshape(manifest.feature_shape(info.grid_rows, info.grid_columns))
    log(str(check_parity(source, onnx_path, captioner, manifest, photos)))
    save_file({"features": torch.from_numpy(features).contiguous()}, captioner / GOLDEN_FEATURES)
    (captioner / GOLDEN_FEATURES).chmod(0o644)  # as in export_decoder
    manifest = replace(manifest, golden_sample=golden_sample(features, info, captioner, manifest))
    manifest = replace(manifest, files=_hashes(folder))
    for model in VERSIONED:
        manifest.save(folder / model)
    return manifest


def _write_golden_image(path: Path, whole: bool) -> None:
    """Write the golden image: a photo, or a flat strip of it for models whose features grow with the image."""
    if whole:
        shutil.copyfile(GOLDEN_PHOTO, path)
        return
    with Image.open(GOLDEN_PHOTO) as photo:
        middle, half = photo.height // 2, photo.width // 12
        photo.crop((0, middle - half, photo.width, middle + half)).save(path, quality=95)


def read_model_type(folder: Path) -> str:
    """Return the `model_type` in config.json. Raises ModelUnsupported if there is none."""
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnsupported(f"{folder / 'config.json'} has no model_type: {error!r}") from error


def _hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every exported file by "<triton model>/<file>"."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
