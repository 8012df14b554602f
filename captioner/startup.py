"""From a published version folder to a running CaptionService: verified, loaded, warmed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from captioner.engine.engine import Engine
from captioner.errors import ArtefactBroken, StartupRefused
from captioner.families import family
from captioner.features import Encoded
from captioner.manifest import Manifest
from captioner.service import CaptionService
from captioner.settings import Settings

log = logging.getLogger(__name__)


def load_service(
    folder: Path,
    version: str,
    gpu: int | None,
    settings: Settings,
    encode: Callable[[bytes], Encoded],
    show: Callable[[dict[str, float]], None],
) -> CaptionService:
    """The service of `folder/version`, where `folder` is the captioner model inside a model repository.

    gpu: CUDA device number, None for the CPU. Raises ArtefactBroken or StartupRefused.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    manifest = Manifest.load(folder / version)
    manifest.verify(folder.parent, version)
    device = _device(gpu, settings)
    decoder = family(manifest.family).decoder(folder / version, manifest, settings.slots, device)
    log.info(
        "%s@%s on %s: %d slots, %.1f MiB of key/value cache",
        manifest.model, manifest.revision[:12], device, settings.slots, decoder.cache_bytes / 2**20,
    )  # fmt: skip
    features = torch.zeros(manifest.feature_tokens, manifest.feature_width)
    for row in range(settings.slots):  # every batch size once, so that no caption pays for the first of its kind
        decoder.prefill(row, features, list(manifest.start_ids))
        decoder.decode([manifest.start_ids[0]] * (row + 1), [len(manifest.start_ids)] * (row + 1))
    tokenizer_file = folder / version / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ArtefactBroken(f"{tokenizer_file} cannot be read: {error}") from error
    engine = Engine(decoder, manifest.stop_ids, slots=settings.slots, max_waiting=settings.max_waiting)
    return CaptionService(manifest, version, str(device), tokenizer, engine, encode, show, settings)


def _device(gpu: int | None, settings: Settings) -> torch.device:
    if settings.decode_threads:
        torch.set_num_threads(settings.decode_threads)
    if gpu is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StartupRefused(f"Triton placed the captioner on GPU {gpu}, but torch sees no CUDA device")
    return torch.device("cuda", gpu)
