"""The seeded workload that all compared systems decode: features computed once, captions of 5 to 60 tokens.

Only decoding is measured: the original's vision encoder encodes random images in torch once, and the features are kept
beside the published model. Stop tokens are ignored on all sides, because a model with random weights emits them at
random. Each caption has exactly the length that was drawn for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.images import png
from benchmarks.published import Published
from captioner.families import family
from captioner.image.decode import load_pixels

MIN_TOKENS, MAX_TOKENS = 5, 60
IMAGES = 32  # different ones; request number 32 has the first again
IMAGE_PX = 256


@dataclass(frozen=True)
class Request:
    """One caption to generate; `number` is its index in the workload."""

    number: int
    image: int
    tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are sent, and their common inputs."""

    requests: list[Request]
    features: torch.Tensor  # (images, image tokens, width)
    prompt_ids: list[int]

    def first(self, count: int) -> Workload:
        """Return a workload of the first `count` requests."""
        return Workload(self.requests[:count], self.features, self.prompt_ids)

    def features_of(self, request: Request) -> torch.Tensor:
        """Return the features of one request, (image tokens, width)."""
        return self.features[request.image]


def workload(published: Published, count: int, seed: int = 0) -> Workload:
    """Return `count` requests for a published model, the same for the same seed."""
    manifest = published.manifest()
    kind, tokenizer = family(manifest.family), Tokenizer.from_file(str(published.version / "tokenizer.json"))
    prompt_ids = kind.prompt_ids(tokenizer, manifest, manifest.prompts.render(None, None))
    limit = min(MAX_TOKENS, manifest.context_tokens - len(prompt_ids))
    rng = random.Random(seed)
    requests = [Request(number, number % IMAGES, rng.randint(MIN_TOKENS, limit)) for number in range(count)]
    return Workload(requests, features(published, seed), prompt_ids)


def images(seed: int = 0) -> list[bytes]:
    """Return IMAGES PNG files, each a random pattern of coarse patches."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    return [png(Image.fromarray(patch).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)) for patch in patches]


@torch.inference_mode()
def features(published: Published, seed: int = 0) -> torch.Tensor:
    """Return the images' features from the original's encoder, (images, image tokens, width); cached on disk."""
    path = published.repository.parent / f"features-{IMAGES}-{seed}.safetensors"
    if not path.is_file():
        source = published.source()
        encoded = []
        for file in images(seed):
            pixels, _ = load_pixels(file, source.image)
            encoded.append(source.vision_encoder(torch.tensor(pixels)[None])[0])
        save_file({"features": torch.stack(encoded).contiguous()}, path)
    return load_file(path)["features"]
