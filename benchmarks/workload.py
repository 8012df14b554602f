"""The seeded workload that every side of a comparison decodes: features made once, lengths from 5 to 60 tokens.

Only decoding is measured: random pictures go through the original's vision encoder in torch once and are kept beside
the published model. Ends are ignored on both sides, for random weights mean nothing by them: each caption has exactly
the length that was drawn for it.
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

SHORTEST, LONGEST = 5, 60  # tokens
PICTURES = 32  # different ones; more requests than that begin again with the first
PICTURE_PX = 256


@dataclass(frozen=True)
class Request:
    """One caption to write; `number` is its place in the workload."""

    number: int
    picture: int
    tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests in the order they are sent, and what all of them are given."""

    requests: list[Request]
    features: torch.Tensor  # (pictures, image tokens, width)
    prompt_ids: list[int]

    def first(self, count: int) -> Workload:
        """The first `count` requests of it."""
        return Workload(self.requests[:count], self.features, self.prompt_ids)

    def features_of(self, request: Request) -> torch.Tensor:
        """(image tokens, width)."""
        return self.features[request.picture]


def workload(published: Published, count: int, seed: int = 0) -> Workload:
    """`count` requests for a published model, the same for the same seed."""
    manifest = published.manifest()
    kind, tokenizer = family(manifest.family), Tokenizer.from_file(str(published.version / "tokenizer.json"))
    prompt_ids = kind.prompt_ids(tokenizer, manifest, manifest.prompts.render(None, None))
    longest = min(LONGEST, manifest.context_tokens - len(prompt_ids))
    chance = random.Random(seed)
    requests = [Request(number, number % PICTURES, chance.randint(SHORTEST, longest)) for number in range(count)]
    return Workload(requests, features(published, seed), prompt_ids)


def pictures(seed: int = 0) -> list[bytes]:
    """PNG files, each another random pattern of coarse patches."""
    random_ = np.random.default_rng(seed)
    patches = random_.integers(0, 256, (PICTURES, 8, 8, 3), dtype=np.uint8)
    return [png(Image.fromarray(patch).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)) for patch in patches]


@torch.inference_mode()
def features(published: Published, seed: int = 0) -> torch.Tensor:
    """The pictures' features from the original's encoder, (pictures, image tokens, width)."""
    path = published.repository.parent / f"features-{PICTURES}-{seed}.safetensors"
    if not path.is_file():
        source = published.source()
        made = []
        for file in pictures(seed):
            pixels, _ = load_pixels(file, source.image)
            made.append(source.vision_encoder(torch.tensor(pixels)[None])[0])
        save_file({"features": torch.stack(made).contiguous()}, path)
    return load_file(path)["features"]
