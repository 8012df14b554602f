"""Batches to train on: what is seen of some photos, what is written of them, things exchanged in both."""

from __future__ import annotations

import random
from typing import Any, Protocol

import numpy as np
import torch

from captioner.families.concept_encoder import ConceptEncoderConfig
from training.backbone_cache import view_of
from training.dataset import FORM_DROP, Batch, Caption, Photo, draw, pack
from training.model import Look
from training.nouns import exchange, nouns
from training.tokenizer import CaptionTokenizer

NEAR = 40  # classes of ImageNet, whose order puts like beside like
BLANK = 0.5  # of the photos with a word exchanged are hidden but for their concepts


class View(Protocol):
    """What the lower blocks saw, (photos, 208, 9, 9), as numpy indexes it."""

    def __getitem__(self, index: Any) -> Any: ...


def make_batch(
    rows: list[int],
    photos: list[Photo],
    views: list[View],
    tokenizer: CaptionTokenizer,
    words: Words,
    share: float,
    chance: random.Random,
) -> tuple[Look, Batch]:
    """One batch of the photos `rows`, each in one of its views; `share` of them have a thing exchanged."""
    chosen = [chance.randrange(len(views)) for _ in rows]
    captions = [
        draw(photos[row], view_of(photos[row].file, view).mirrored, chance)
        for view, row in zip(chosen, rows, strict=True)
    ]
    exchanged = torch.full((len(rows), 2), -1)
    named = words.named_PN[rows].float()
    for number, row in enumerate(captions):
        if chance.random() < share and (pair := words.pair(row, chance)):
            old, new = pair
            exchanged[number] = torch.tensor([words.index[old], words.index[new]])
            captions[number] = [Caption(exchange(c.text, old, new), c.form) for c in row]
    blank = (exchanged[:, 0] >= 0) & (torch.rand(len(rows)) < BLANK)
    lower = torch.from_numpy(np.stack([views[view][row] for view, row in zip(chosen, rows, strict=True)])).float()
    return Look(lower, named, exchanged, blank), pack(captions, tokenizer, FORM_DROP, chance)


def plain_look(lower_BCHW: torch.Tensor, named_BN: torch.Tensor) -> Look:
    """A look at photos as they are."""
    none = torch.full((len(lower_BCHW), 2), -1)
    return Look(lower_BCHW, named_BN, none, none[:, 0] >= 0)


class Words:
    """The encoder's words in the captions of some photos."""

    def __init__(self, config: ConceptEncoderConfig, photos: list[Photo]) -> None:
        self.words = config.words
        self.index = {word: number for number, word in enumerate(config.words)}
        self.by_class = [config.words[word] for word in config.class_words]
        place = {config.words[word]: number for number, word in enumerate(config.caption_words)}
        self.named_PN = torch.zeros(len(photos), len(place), dtype=torch.uint8)
        for row, photo in enumerate(photos):
            for caption in photo.captions:
                self.named_PN[row, [place[word] for word in nouns(caption.text) if word in place]] = 1

    def pair(self, captions: list[Caption], chance: random.Random) -> tuple[str, str] | None:
        """One of the first things the captions name, and a thing not far from it in ImageNet's order."""
        offered = [word for word in nouns(captions[0].text)[:2] if word in self.by_class]
        if not offered:
            return None
        old = chance.choice(offered)
        place = chance.choice([number for number, word in enumerate(self.by_class) if word == old])
        new = self.by_class[min(max(place + chance.randint(-NEAR, NEAR), 0), len(self.by_class) - 1)]
        return (old, new) if new != old else None
