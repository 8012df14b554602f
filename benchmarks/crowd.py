"""A seeded crowd of requests: mixed pictures, prompts and lengths that arrive, leave and are cancelled on a schedule.

It drives an engine step by step, so that the schedule counts steps and not seconds.
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

PICTURES = 8
SIDES = (
    (4, 1),
    (1, 3),
    (2, 1),
    (1, 1),
    (3, 1),
    (1, 2),
    (4, 1),
    (1, 4),
)  # aspects: models with tiles cut each another way
LONGEST = 40  # tokens
WORDS = ("a", "photo of", "the cat", "a red table", "two dogs in the fog", "on", "a man with a picture")
CANCELLED = 1 / 6  # of all requests
MOST_BEAMS = 5


@dataclass(eq=False)
class Picture:
    """An image as the server sees it; features are set by who has an encoder."""

    pixels_HWC: NDArray[np.uint8]
    tile_rows: int
    tile_columns: int
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(eq=False)
class Member:
    """One request: when it comes, when its client leaves, and how it ended."""

    number: int
    picture: Picture
    arrival: int  # step
    leaving: int | None  # steps after the arrival
    sequence: Sequence
    reason: FinishReason | None = None


def images(spec: ImageSpec, seed: int) -> list[Picture]:
    """Pictures of coarse random patches in different shapes, through the server's own image code."""
    random_, made = np.random.default_rng(seed), []
    for width, height in SIDES[:PICTURES]:
        patches = random_.integers(0, 256, (4 * height, 4 * width, 3), dtype=np.uint8)
        whole = Image.fromarray(patches).resize((96 * width, 96 * height), Image.Resampling.NEAREST)
        pixels, info = load_pixels(png(whole), spec)
        made.append(Picture(np.array(pixels), info.tile_rows, info.tile_columns))
    return made


def crowd(
    pictures: list[Picture], kind: type[Family], tokenizer: Tokenizer, manifest: Manifest, count: int, seed: int
) -> list[Member]:
    """`count` requests; prompts are the model's own and made-up words, lengths 1 to 40 tokens where there is room."""
    chance = random.Random(seed)
    table = [prompt for lengths in manifest.prompts.styles.values() for prompt in lengths.values()]
    members = []
    for number in range(count):
        picture = chance.choice(pictures)
        prompt = chance.choice(table if chance.random() < 0.5 else WORDS)
        ids = kind.prompt_ids(tokenizer, manifest, prompt, picture.tile_rows, picture.tile_columns)
        limit = chance.randint(1, min(LONGEST, manifest.context_tokens - len(ids)))
        leaving = chance.randint(1, 12) if chance.random() < CANCELLED else None
        sequence = Sequence(ids, Sampling(), limit, priority_level=chance.randint(1, 3), features=picture.features)
        members.append(Member(number, picture, chance.randrange(4 * count), leaving, sequence))
    return members


def searches(members: list[Member], manifest: Manifest, count: int, tokens: int) -> list[Member]:
    """The first `count` requests again, each with 1 to 5 beams and at most `tokens` tokens."""
    made: list[Member] = []
    for width in range(1, MOST_BEAMS + 1):
        for member in members[:count]:
            ids, room = member.sequence.prompt_ids, manifest.context_tokens - len(member.sequence.prompt_ids)
            beams = BeamSearch(
                ids,
                width=width,
                max_tokens=min(tokens, room),
                stop_ids=manifest.stop_ids,
                length_penalty=manifest.generation.length_penalty,
                early_stopping=manifest.generation.early_stopping,
            )
            sequence = Sequence(ids, Sampling(), min(tokens, room), beams=beams, features=member.picture.features)
            made.append(Member(member.number, member.picture, len(made), None, sequence))
    return made


def run(engine: Engine, members: list[Member]) -> None:
    """Steps the engine until everyone has come and gone."""
    for member in members:
        member.sequence.on_finish = lambda reason, member=member: setattr(member, "reason", reason)  # type: ignore[misc]
    step = 0
    while any(member.reason is None for member in members):
        for member in members:
            if member.arrival == step:
                engine.admit()
                engine.submit(member.sequence)
            if member.leaving is not None and member.arrival + member.leaving == step:
                member.sequence.cancelled = True
        engine.step()
        step += 1
