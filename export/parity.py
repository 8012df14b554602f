"""Compare the exported files with the original model: features within limits, greedy tokens equal."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from captioner.artifacts.golden import GOLDEN_TOKENS
from captioner.artifacts.manifest import GoldenSample, Manifest
from captioner.engine.greedy import Request, greedy
from captioner.engine.runner import Runner
from captioner.errors import ArtefactBroken
from captioner.families import family
from captioner.families.base import Source
from captioner.image.spec import ImageSpec
from captioner.wire import ImageInfo
from export.onnx_export import onnx_features
from export.precision import Difference, check

PARITY_BATCH = 3  # differs from the batch of the export
DYNAMIC_GRID = (5, 6)  # differs from the grid of the export
MAX_TOKENS = 24
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Parity:
    """The result of a comparison that passed."""

    difference: Difference
    tokens: int
    images: int

    def __str__(self) -> str:
        return f"{self.difference}; {self.tokens} greedy tokens of {self.images} images are equal"


@torch.inference_mode()
def check_parity(
    source: Source, onnx_path: Path, folder: Path, manifest: Manifest, photos_BHWC: NDArray[np.uint8] | None = None
) -> Parity:
    """Compare features and greedy tokens on synthetic images. Raises ArtefactBroken with the difference.

    `folder` holds the exported decoder and tokenizer; each image is captioned with another of the model's prompts. An
    encoder in fp16 or int8 is compared on `photos_BHWC` instead, and the decoder then reads the original's features.
    """
    grid = _grid(source.image)
    pixels = _synthetic_images(*source.image.pixel_size(*grid))
    features = source.vision_encoder(torch.from_numpy(pixels)).numpy()
    if photos_BHWC is None:
        expected, features = features, onnx_features(onnx_path, pixels)
        difference = check(expected, features, "fp32")
    else:
        expected = source.vision_encoder(torch.from_numpy(photos_BHWC)).numpy()
        difference = check(expected, onnx_features(onnx_path, photos_BHWC), manifest.precision)
    prompts = cycle(prompt for lengths in source.prompts.styles.values() for prompt in lengths.values())
    kind, tokenizer = family(manifest.family), Tokenizer.from_file(str(folder / "tokenizer.json"))
    requests = []
    shape = PARITY_BATCH, *manifest.feature_shape(*grid)
    for each, prompt in zip(torch.from_numpy(features).reshape(shape), prompts, strict=False):
        ids = kind.prompt_ids(tokenizer, manifest, prompt, *grid)
        requests.append((ids, each, min(MAX_TOKENS, source.context_tokens - len(ids))))
    exported = _greedy(folder, manifest, requests)
    for image, (ids, _, max_tokens), tokens in zip(torch.from_numpy(pixels), requests, exported, strict=True):
        original = source.generate(image, ids, max_new_tokens=max_tokens, **GREEDY)
        original = [token for token in original if token not in source.stop_ids]
        if original != tokens:
            raise ArtefactBroken(f"greedy tokens differ: the original gives {original}, the export {tokens}")
    return Parity(difference, sum(map(len, exported)), PARITY_BATCH)


@torch.inference_mode()
def golden_sample(features: NDArray[np.float32], info: ImageInfo, folder: Path, manifest: Manifest) -> GoldenSample:
    """Caption an image's features, in `manifest.feature_shape`, greedily with the exported decoder in `folder`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = manifest.prompts.render(None, None)
    ids = family(manifest.family).prompt_ids(tokenizer, manifest, prompt, info.grid_rows, info.grid_columns)
    max_tokens = min(GOLDEN_TOKENS, manifest.context_tokens - len(ids))
    (tokens,) = _greedy(folder, manifest, [(ids, torch.from_numpy(features), max_tokens)])
    text_ids = [*ids, *tokens] if manifest.continues_prompt else tokens
    text = (family(manifest.family).locations(tokenizer) or tokenizer).decode(text_ids)
    return GoldenSample(tuple(ids), tuple(tokens), text.strip())


def _greedy(folder: Path, manifest: Manifest, requests: list[Request]) -> list[list[int]]:
    decoder = family(manifest.family).decoder(folder, manifest, "fp32", torch.device("cpu"))
    try:
        return greedy(Runner(decoder, len(requests)), manifest.stop_ids, requests)
    except Exception as error:
        raise ArtefactBroken(f"the exported decoder fails: {error!r}") from error


def _grid(image: ImageSpec) -> tuple[int, int]:
    """Return a small grid of the images to compare."""
    if image.max_pixels is not None:
        return DYNAMIC_GRID
    return (1, 1) if any(image.max_grid) else (0, 0)


def _synthetic_images(height: int, width: int) -> NDArray[np.uint8]:
    """Return three different images, (3, height, width, 3): noise, coarse patches, a gradient."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (height, width, 3))
    patches = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((height // 8 + 1, width // 8 + 1, 1)))
    gradient = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    images: NDArray[np.uint8] = np.stack([noise, patches[:height, :width], gradient]).astype(np.uint8)
    return images
