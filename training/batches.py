"""Build training batches: a photo's backbone features, its packed captions, and nouns swapped in both."""

from __future__ import annotations

import random
from typing import Any, Protocol

import numpy as np
import torch

from captioner.families.concept_encoder import ConceptEncoderConfig
from training.backbone_cache import augmentation
from training.dataset import FORM_TOKEN_DROPOUT, Caption, CaptionBatch, Photo, pack, sample_captions
from training.model import ImageBatch
from training.nouns import colors, nouns, swap_noun
from training.tokenizer import CaptionTokenizer

NEIGHBOUR_CLASSES = 40  # ImageNet orders its classes by similarity
HIDDEN_GRID = 0.5  # share of the photos with a swapped noun whose tokens are hidden, except the concepts


class LowerFeatures(Protocol):
    """One view of the photos after the backbone's lower blocks, (photos, 220, 9, 9), indexed like a numpy array."""

    def __getitem__(self, index: Any) -> Any: ...


def make_batch(
    rows: list[int],
    photos: list[Photo],
    views: list[LowerFeatures],
    tokenizer: CaptionTokenizer,
    targets: NounTargets,
    swap_share: float,
    rng: random.Random,
) -> tuple[ImageBatch, CaptionBatch]:
    """Return a batch of the photos `rows`, each in a random view; a share of them has one noun swapped."""
    chosen = [rng.randrange(len(views)) for _ in rows]
    captions = [
        sample_captions(photos[row], augmentation(photos[row].file, view).mirrored, rng)
        for view, row in zip(chosen, rows, strict=True)
    ]
    swapped = torch.full((len(rows), 2), -1)
    noun_targets = targets.targets_PN[rows].float()
    for number, row in enumerate(captions):
        if rng.random() < swap_share and (pair := targets.sample_swap(row, rng)):
            old, new = pair
            swapped[number] = torch.tensor([targets.index[old], targets.index[new]])
            captions[number] = [Caption(swap_noun(c.text, old, new), c.form) for c in row]
    grid_hidden = (swapped[:, 0] >= 0) & (torch.rand(len(rows)) < HIDDEN_GRID)
    lower = torch.from_numpy(np.stack([views[view][row] for view, row in zip(chosen, rows, strict=True)])).float()
    images = ImageBatch(lower, noun_targets, swapped, grid_hidden)
    return images, pack(captions, tokenizer, FORM_TOKEN_DROPOUT, rng)


def unmodified(lower_BCHW: torch.Tensor, noun_targets_BN: torch.Tensor) -> ImageBatch:
    """Return photos without swapped nouns and with all tokens visible."""
    no_swap = torch.full((len(lower_BCHW), 2), -1)
    return ImageBatch(lower_BCHW, noun_targets_BN, no_swap, no_swap[:, 0] >= 0)


class NounTargets:
    """Which of the encoder's words the captions of each photo name: the targets of its noun head."""

    def __init__(self, config: ConceptEncoderConfig, photos: list[Photo]) -> None:
        self.words = config.words
        self.index = {word: number for number, word in enumerate(config.words)}
        self.by_class = [config.words[word] for word in config.class_words]
        column = {config.words[word]: number for number, word in enumerate(config.caption_words)}
        self.targets_PN = torch.zeros(len(photos), len(column), dtype=torch.uint8)
        for row, photo in enumerate(photos):
            for caption in photo.captions:
                named = nouns(caption.text) + colors(caption.text)
                self.targets_PN[row, [column[word] for word in named if word in column]] = 1

    def sample_swap(self, captions: list[Caption], rng: random.Random) -> tuple[str, str] | None:
        """Return one of the first two nouns and the word of a similar ImageNet class, or None if there is no pair."""
        candidates = [word for word in nouns(captions[0].text)[:2] if word in self.by_class]
        if not candidates:
            return None
        old = rng.choice(candidates)
        old_class = rng.choice([number for number, word in enumerate(self.by_class) if word == old])
        new_class = old_class + rng.randint(-NEIGHBOUR_CLASSES, NEIGHBOUR_CLASSES)
        new = self.by_class[min(max(new_class, 0), len(self.by_class) - 1)]
        return (old, new) if new != old else None
