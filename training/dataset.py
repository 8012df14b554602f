"""Load photos with captions from `captions.json`, and pack captions into training batches.

Flickr8k is left out: its terms forbid free use of what is trained with it. This module knows captions, not pixels: a
photo is the name of its file.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from captioner.embedded import Form
from training.nouns import nouns
from training.tokenizer import CaptionTokenizer

Split = Literal["train", "val", "test"]
# COCO's and OSIE's photos · things, food, places, documents · cartoons, paintings, sketches · COCO with human captions
Set = Literal["everyday", "other", "drawings", "human"]
EVERYDAY = ("COCO", "OSIE")
DRAWINGS = ("cartoon", "painting", "sketch")
MAX_CAPTIONS_PER_ROW = 3
DRAW_PROBABILITY: dict[Form, float] = {"long": 0.3, "tags": 0.3}  # 1 for other forms: the saved time buys more epochs
FORM_TOKEN_DROPOUT = 0.1  # share of captions without their form's token, so that a free prefix works as a prompt
MAX_TAGS = 8
# How often an epoch shows a photo of a source with many photos of few kinds of things, so that they do not take over.
REPEATS = {"Houses-dataset": 0.5, "ikea": 0.5, "Animal-Pose": 0.6, "Natural-Scene": 0.7, "SROIE": 0.6}
HUMAN_REPEATS = 3.0  # of a photo that has only captions written by people: there are few
IGNORE_INDEX = -100  # the label that torch's cross entropy skips
MIRROR = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


@dataclass(frozen=True)
class Caption:
    """One caption of a photo and its form (its length or style)."""

    text: str
    form: Form


@dataclass(frozen=True)
class Photo:
    """A photo and its captions. `file` is relative to the data folder.

    `synthetic`: a vision-language model wrote the captions; otherwise they are COCO's, written by people. `repeats`:
    how often an epoch shows the photo, on average. `set`: what is evaluated together.
    """

    file: str
    captions: tuple[Caption, ...]
    synthetic: bool
    repeats: float = 1.0
    set: Set = "everyday"


@dataclass(frozen=True)
class CaptionBatch:
    """Packed captions, all tensors (B, T). A row holds several captions of one photo, which do not see each other."""

    ids: torch.Tensor
    labels: torch.Tensor  # the next id, or IGNORE_INDEX
    positions: torch.Tensor  # each caption starts at 0
    captions: torch.Tensor  # the number of the row's caption that a token belongs to; −1 is padding


def load_photos(data: Path, split: Split) -> list[Photo]:
    """Return the photos of one split, in the file's order, without Flickr8k and without photos that have no caption."""
    photos = []
    for entry in json.loads((data / "captions.json").read_text())["images"]:
        if entry["split"] != split or "flickr8k" in entry["source"].lower():
            continue
        synthetic = "lengths" in entry
        forms = entry["lengths"] if synthetic else ["plain"] * len(entry["captions"])
        texts = [normalise(text) for text in entry["captions"]]
        # Lettering cannot be read at 260 px. A model trained on captions that quote it learns to invent names.
        kept = [Caption(text, form) for text, form in zip(texts, forms, strict=True) if '"' not in text]
        if kept:
            share = next((share for name, share in REPEATS.items() if name in entry["source"]), 1.0)
            repeats = share if synthetic else HUMAN_REPEATS
            photos.append(Photo(entry["file"], (*kept, tags(kept)), synthetic, repeats, _set(entry, synthetic)))
    return photos


def _set(entry: dict[str, Any], synthetic: bool) -> Set:
    if not synthetic:
        return "human"
    if entry.get("kind") in DRAWINGS:
        return "drawings"
    return "everyday" if any(name in entry["source"] for name in EVERYDAY) else "other"


def references(photo: Photo) -> list[str]:
    """Return the texts that generated captions are compared with: all captions of the photo but its tags."""
    return [caption.text for caption in photo.captions if caption.form != "tags"]


def tags(captions: list[Caption]) -> Caption:
    """Return the nouns of a photo's captions as one caption, most frequent first."""
    counts = Counter(word for caption in captions for word in nouns(caption.text))
    return Caption(", ".join(word for word, _ in counts.most_common(MAX_TAGS)), "tags")


def normalise(text: str) -> str:
    """Return a caption with single spaces, a capital first letter, and a full stop if it has nine words or more."""
    text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split())).rstrip(" .")
    text = text[:1].upper() + text[1:]
    return text if len(text.split()) <= 8 else text + "."


def mirror(text: str) -> str:
    """Return the caption of the mirrored photo: "left" and "right" are swapped."""
    return re.sub(rf"\b({'|'.join(MIRROR)})\b", lambda match: MIRROR[match[0]], text)


def pack(rows: list[list[Caption]], tokenizer: CaptionTokenizer, drop: float, rng: random.Random) -> CaptionBatch:
    """Return a batch with one row per photo. A caption loses its form's token with probability `drop`."""
    packed = [[tokenizer.encode(c.text, None if rng.random() < drop else c.form) for c in row] for row in rows]
    width = max(sum(len(sequence) - 1 for sequence in row) for row in packed)
    ids = torch.full((len(rows), width), tokenizer.pad)
    labels = torch.full_like(ids, IGNORE_INDEX)
    positions = torch.zeros_like(ids)
    captions = torch.full_like(ids, -1)
    for r, row in enumerate(packed):
        start = 0
        for number, sequence in enumerate(row):
            end = start + len(sequence) - 1
            ids[r, start:end] = torch.tensor(sequence[:-1])
            labels[r, start:end] = torch.tensor(
                [IGNORE_INDEX if token in tokenizer.forms.values() else token for token in sequence[1:]]
            )
            positions[r, start:end] = torch.arange(end - start)
            captions[r, start:end] = number
            start = end
    return CaptionBatch(ids, labels, positions, captions)


def sample_captions(photo: Photo, mirrored: bool, rng: random.Random) -> list[Caption]:
    """Return up to MAX_CAPTIONS_PER_ROW random captions of a photo, by DRAW_PROBABILITY."""
    drawn = [c for c in photo.captions if c.text and rng.random() < DRAW_PROBABILITY.get(c.form, 1)]
    drawn = drawn or [photo.captions[0]]
    captions = rng.sample(drawn, min(MAX_CAPTIONS_PER_ROW, len(drawn)))
    return [Caption(mirror(c.text), c.form) for c in captions] if mirrored else captions


def index_batches(photos: list[Photo], batch: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices of `photos` for ever, each as often as its `repeats` says.

    Each epoch has its own order; a short last batch is dropped.
    """
    rng = random.Random(seed)
    while True:
        shown = [row for row, photo in enumerate(photos) for _ in range(int(photo.repeats + rng.random()))]
        rng.shuffle(shown)
        yield from (shown[start : start + batch] for start in range(0, len(shown) - batch + 1, batch))


def epoch_batches(photos: list[Photo], batch: int) -> float:
    """Return the number of batches of an epoch, on average."""
    return sum(photo.repeats for photo in photos) / batch
