"""The exported files against the model they were made from: features within a bound, greedy tokens equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.errors import ArtefactBroken
from captioner.families.base import Decoder, Source
from export.vision_encoder import onnx_features

PARITY_BATCH = 3  # not the batch of the export
MAX_FEATURE_DIFFERENCE = 1e-3  # of the features' own largest value
TOKENS = 24


@dataclass(frozen=True)
class Parity:
    """What the comparison found. `feature_difference` is the largest, as a share of the largest feature."""

    feature_difference: float
    tokens: int
    images: int

    def __str__(self) -> str:
        return (
            f"features differ by at most {self.feature_difference:.1e} of the largest, "
            f"{self.tokens} greedy tokens of {self.images} images are equal"
        )


@torch.inference_mode()
def check_parity(source: Source, onnx_path: Path, decoder: Decoder, lengths_prompts: list[list[int]]) -> Parity:
    """Compares on noise of several kinds, so that nothing need be downloaded; ArtefactBroken says what differs.

    `decoder` reads the published files; `lengths_prompts` are token ids, one prompt for each image in turn.
    """
    pixels = _patterns(source.image.height, source.image.width)
    expected = source.vision_encoder(torch.from_numpy(pixels)).numpy()
    found = onnx_features(onnx_path, pixels)
    if found.shape != expected.shape:
        raise ArtefactBroken(f"the exported encoder gives {found.shape}, the original {expected.shape}")
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6))
    if not difference <= MAX_FEATURE_DIFFERENCE:
        raise ArtefactBroken(
            f"features differ by {difference:.1e} of the largest; the limit is {MAX_FEATURE_DIFFERENCE:.0e}"
        )
    total = 0
    for image in range(PARITY_BATCH):
        prompt = lengths_prompts[image % len(lengths_prompts)]
        limit = min(TOKENS, source.context_tokens - len(prompt))
        original = _greedy_torch(source, torch.from_numpy(expected[image]), prompt, limit)
        published = _greedy_published(source, decoder, torch.from_numpy(found[image]), prompt, limit)
        if original != published:
            raise ArtefactBroken(f"greedy tokens differ: the original gives {original}, the export {published}")
        total += len(original)
    return Parity(difference, total, PARITY_BATCH)


def _patterns(height: int, width: int) -> NDArray[np.uint8]:
    """Three unlike pictures: noise, coarse patches, a gradient. (3, height, width, 3)."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (height, width, 3))
    patches = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((height // 8 + 1, width // 8 + 1, 1)))
    gradient = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    pictures: NDArray[np.uint8] = np.stack([noise, patches[:height, :width], gradient]).astype(np.uint8)
    return pictures


def _greedy_torch(source: Source, features: torch.Tensor, prompt: list[int], limit: int) -> list[int]:
    """The original decoder, the whole text anew for each token: slow, and without any cache to be wrong."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        output = source.decoder(input_ids=torch.tensor([ids]), encoder_hidden_states=features[None], use_cache=False)
        token = int(output.logits[0, -1].argmax())
        if token in source.stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def _greedy_published(
    source: Source, decoder: Decoder, features: torch.Tensor, prompt: list[int], limit: int
) -> list[int]:
    tokens: list[int] = []
    logits = decoder.prefill(0, features, prompt)
    while (token := int(logits.argmax())) not in source.stop_ids:
        tokens.append(token)
        if len(tokens) == limit:
            break
        logits = decoder.decode([token], [len(prompt) + len(tokens) - 1])[0]
    return tokens
