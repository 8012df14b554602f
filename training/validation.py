"""Encode held-out photos and compute the validation loss."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from training.batches import LowerFeatures, NounTargets, unmodified
from training.dataset import Photo, pack
from training.model import Captioner
from training.tokenizer import CaptionTokenizer

BATCH = 32


def validation_loss(
    captioner: Captioner, tokenizer: CaptionTokenizer, photos: list[Photo], view: LowerFeatures
) -> float:
    """Return the mean cross entropy per token, in nats, of each photo's first three captions with their form tokens."""
    captioner.eval()
    total, tokens = 0.0, 0
    targets = NounTargets(captioner.encoder.config, photos)
    with torch.inference_mode():
        for start in range(0, len(photos), BATCH):
            rows = [list(photo.captions[:3]) for photo in photos[start : start + BATCH]]
            captions = pack(rows, tokenizer, 0, random.Random(0))
            counted = int((captions.labels >= 0).sum())
            lower = torch.from_numpy(np.array(view[start : start + BATCH])).float()
            images = unmodified(lower, targets.targets_PN[start : start + BATCH].float())
            loss, _ = captioner.losses(images, captions)
            total += counted * loss.item()
            tokens += counted
    return total / tokens


@torch.inference_mode()
def grids(captioner: Captioner, view: LowerFeatures, count: int) -> Iterator[torch.Tensor]:
    """Yield the backbone's last feature maps of the first `count` photos in batches, float32 (B, 81, 1292)."""
    captioner.eval()
    for start in range(0, count, BATCH):
        lower = torch.from_numpy(np.array(view[start : min(start + BATCH, count)])).float()
        yield captioner.encoder.grid(lower)


@torch.inference_mode()
def encode(captioner: Captioner, view: LowerFeatures, count: int) -> torch.Tensor:
    """Return the features that the decoder attends to, for the first `count` photos: float32 (count, tokens, width)."""
    return torch.cat([captioner.encoder.project(grid) for grid in grids(captioner, view, count)])
