"""Photos with captions, and the batches that training takes of them.

Reads `captions.json` of the data folder. Flickr8k is left out: its terms forbid free use of what is trained with it.
It knows no pixels: a photo is here its file's name.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from captioner.embedded import Form
from training.nouns import nouns
from training.tokenizer import CaptionTokenizer

Split = Literal["train", "val", "test"]
CAPTIONS_A_PHOTO = 3  # packed into one row
SHARES: dict[Form, float] = {"long": 0.3, "tags": 0.3}  # of these are drawn: time buys passes
FORM_DROP = 0.1  # of the captions are seen without their form's token, so that a free prefix works as prompt
TAGS = 8  # a photo, at most
IGNORED = -100  # the label that torch's cross entropy skips
MIRROR = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


@dataclass(frozen=True)
class Caption:
    """What someone saw in a photo."""

    text: str
    form: Form


@dataclass(frozen=True)
class Photo:
    """A photo's file, relative to the data folder, and its captions. `written` tells them from COCO's human ones."""

    file: str
    captions: tuple[Caption, ...]
    written: bool


@dataclass(frozen=True)
class Batch:
    """Packed captions: each row holds several of one photo, which do not see each other. All (B, T)."""

    ids: torch.Tensor
    labels: torch.Tensor  # the next id, IGNORED where nothing is to be learnt
    positions: torch.Tensor  # each caption starts at 0
    captions: torch.Tensor  # which caption of the row a token belongs to; −1 is padding


def load_photos(data: Path, split: Split, flickr8k: bool = False) -> list[Photo]:
    """The photos of one split that have captions left, in the file's order."""
    photos = []
    for entry in json.loads((data / "captions.json").read_text())["images"]:
        if entry["split"] != split or ("flickr8k" in entry["source"].lower() and not flickr8k):
            continue
        written = "lengths" in entry
        forms = entry["lengths"] if written else ["plain"] * len(entry["captions"])
        texts = [tidy(text) for text in entry["captions"]]
        # Quoted lettering cannot be read at this size: trained on, it teaches to invent names.
        kept = [Caption(text, form) for text, form in zip(texts, forms, strict=True) if '"' not in text]
        if kept:
            photos.append(Photo(entry["file"], (*kept, tags(kept)), written))
    return photos


def taught(photos: list[Photo], path: Path) -> list[Photo]:
    """The same photos with what a teacher wrote of them beside their own: `path` maps files to captions by form."""
    written: dict[str, dict[Form, str]] = json.loads(path.read_text())
    return [
        replace(photo, captions=(*photo.captions, *(Caption(tidy(text), form) for form, text in said.items() if text)))
        for photo in photos
        for said in [written.get(photo.file, {})]
    ]


def texts(photo: Photo) -> list[str]:
    """A photo's references: all that was written of it."""
    return [caption.text for caption in photo.captions if caption.form != "tags"]


def tags(captions: list[Caption]) -> Caption:
    """The things that a photo's captions name, those of most captions first."""
    named = Counter(word for caption in captions for word in nouns(caption.text))
    return Caption(", ".join(word for word, _ in named.most_common(TAGS)), "tags")


def tidy(text: str) -> str:
    """One caption in the written ones' style: one space between words, a capital, a full stop from nine words on."""
    text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split())).rstrip(" .")
    text = text[:1].upper() + text[1:]
    return text if len(text.split()) <= 8 else text + "."


def mirror(text: str) -> str:
    """The caption of the mirrored photo: left and right change places."""
    return re.sub(rf"\b({'|'.join(MIRROR)})\b", lambda match: MIRROR[match[0]], text)


def pack(rows: list[list[Caption]], tokenizer: CaptionTokenizer, drop: float, chance: random.Random) -> Batch:
    """One row for each photo's captions; a caption loses its form's token with probability `drop`."""
    packed = [[tokenizer.sequence(c.text, None if chance.random() < drop else c.form) for c in row] for row in rows]
    width = max(sum(len(sequence) - 1 for sequence in row) for row in packed)
    ids = torch.full((len(rows), width), tokenizer.pad)
    labels = torch.full_like(ids, IGNORED)
    positions = torch.zeros_like(ids)
    captions = torch.full_like(ids, -1)
    for r, row in enumerate(packed):
        start = 0
        for number, sequence in enumerate(row):
            end = start + len(sequence) - 1
            ids[r, start:end] = torch.tensor(sequence[:-1])
            labels[r, start:end] = torch.tensor(
                [IGNORED if token in tokenizer.forms.values() else token for token in sequence[1:]]
            )
            positions[r, start:end] = torch.arange(end - start)
            captions[r, start:end] = number
            start = end
    return Batch(ids, labels, positions, captions)


def draw(photo: Photo, mirrored: bool, chance: random.Random) -> list[Caption]:
    """The captions of one row: a written photo's short and medium, at times its long one; some of COCO's five."""
    offered = [c for c in photo.captions if c.text and chance.random() < SHARES.get(c.form, 1)] or [photo.captions[0]]
    captions = chance.sample(offered, min(CAPTIONS_A_PHOTO, len(offered)))
    return [Caption(mirror(c.text), c.form) for c in captions] if mirrored else captions


def passes(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices, for ever: each pass takes every one of `count` photos once, in its own order."""
    chance = random.Random(seed)
    while True:
        order = chance.sample(range(count), count)
        yield from (order[start : start + batch] for start in range(0, count - batch + 1, batch))
