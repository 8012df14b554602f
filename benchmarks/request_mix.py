"""A seeded mix of requests: different images, prompts and lengths that arrive, leave and are cancelled on a schedule.

The schedule counts engine steps, not seconds: `run` calls the engine step by step, so every run is the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.images import png
from captioner.artifacts.manifest import Manifest
from captioner.engine.beam_search import BeamSearch
from captioner.engine.engine import Engine
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import FinishReason, Sequence
from captioner.families.base import Family
from captioner.image.decode import load_pixels
from captioner.image.spec import ImageSpec

# Width to height. Models that cut images into tiles cut each of these differently.
ASPECTS = ((4, 1), (1, 3), (2, 1), (1, 1), (3, 1), (1, 2), (4, 1), (1, 4))
MAX_NEW_TOKENS = 40
PROMPTS = ("a", "photo of", "the cat", "a red table", "two dogs in the fog", "on", "a man with a picture")
CANCELLED_SHARE = 1 / 6
MAX_BEAMS = 5


@dataclass(eq=False)
class InputImage:
    """An image as the preprocessor returns it; the caller encodes it and sets `features`."""

    pixels_HWC: NDArray[np.uint8]
    grid_rows: int
    grid_columns: int
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(eq=False)
class ScheduledRequest:
    """One request: the step at which it arrives, when its client cancels it, and how it ended."""

    number: int
    image: InputImage
    arrival: int  # step
    cancelled_after: int | None  # steps after the arrival
    sequence: Sequence
    reason: FinishReason | None = None


def images(spec: ImageSpec, seed: int) -> list[InputImage]:
    """Return images of coarse random patches in all ASPECTS, preprocessed by the server's own code."""
    rng, made = np.random.default_rng(seed), []
    for width, height in ASPECTS:
        patches = rng.integers(0, 256, (4 * height, 4 * width, 3), dtype=np.uint8)
        image = Image.fromarray(patches).resize((96 * width, 96 * height), Image.Resampling.NEAREST)
        pixels, info = load_pixels(png(image), spec)
        made.append(InputImage(np.array(pixels), info.grid_rows, info.grid_columns))
    return made


def request_mix(
    inputs: list[InputImage], kind: type[Family], tokenizer: Tokenizer, manifest: Manifest, count: int, seed: int
) -> list[ScheduledRequest]:
    """Return `count` greedy requests with the model's own prompts or PROMPTS, and 1 to MAX_NEW_TOKENS tokens."""
    rng = random.Random(seed)
    own_prompts = [prompt for lengths in manifest.prompts.styles.values() for prompt in lengths.values()]
    requests = []
    for number in range(count):
        image = rng.choice(inputs)
        prompt = rng.choice(own_prompts if rng.random() < 0.5 else PROMPTS)
        ids = kind.prompt_ids(tokenizer, manifest, prompt, image.grid_rows, image.grid_columns)
        limit = rng.randint(1, min(MAX_NEW_TOKENS, manifest.context_tokens - len(ids)))
        cancelled_after = rng.randint(1, 12) if rng.random() < CANCELLED_SHARE else None
        sequence = Sequence(ids, Sampling(), limit, priority_level=rng.randint(1, 3), features=image.features)
        requests.append(ScheduledRequest(number, image, rng.randrange(4 * count), cancelled_after, sequence))
    return requests


def beam_searches(
    requests: list[ScheduledRequest], manifest: Manifest, count: int, tokens: int
) -> list[ScheduledRequest]:
    """Return the first `count` requests again, with each of 1 to MAX_BEAMS beams and at most `tokens` tokens."""
    searches: list[ScheduledRequest] = []
    for width in range(1, MAX_BEAMS + 1):
        for request in requests[:count]:
            ids = request.sequence.prompt_ids
            limit = min(tokens, manifest.context_tokens - len(ids))
            beams = BeamSearch(
                ids,
                width=width,
                max_tokens=limit,
                stop_ids=manifest.stop_ids,
                length_penalty=manifest.generation.length_penalty,
                early_stopping=manifest.generation.early_stopping,
            )
            sequence = Sequence(ids, Sampling(), limit, beams=beams, features=request.image.features)
            searches.append(ScheduledRequest(request.number, request.image, len(searches), None, sequence))
    return searches


def run(engine: Engine, requests: list[ScheduledRequest]) -> None:
    """Step the engine until every request has ended."""
    for request in requests:
        request.sequence.on_finish = lambda reason, request=request: setattr(request, "reason", reason)  # type: ignore[misc]
    step = 0
    while any(request.reason is None for request in requests):
        for request in requests:
            if request.arrival == step:
                engine.admit(request.sequence)
                engine.submit(request.sequence)
            if request.cancelled_after is not None and request.arrival + request.cancelled_after == step:
                request.sequence.cancelled = True
        engine.step()
        step += 1
