"""What is measured while training: the loss of the captions that validation has."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from training.batches import View, Words, plain_look
from training.dataset import Photo, pack
from training.model import Captioner
from training.tokenizer import CaptionTokenizer

BATCH = 32


def loss(captioner: Captioner, tokenizer: CaptionTokenizer, photos: list[Photo], view: View) -> float:
    """Mean cross entropy a token of each photo's first three captions, in nats, with their forms' tokens."""
    captioner.eval()
    total, tokens = 0.0, 0
    words = Words(captioner.encoder.config, photos)
    with torch.inference_mode():
        for start in range(0, len(photos), BATCH):
            rows = [list(photo.captions[:3]) for photo in photos[start : start + BATCH]]
            batch = pack(rows, tokenizer, 0, random.Random(0))
            learnt = int((batch.labels >= 0).sum())
            lower = torch.from_numpy(np.array(view[start : start + BATCH])).float()
            found, _ = captioner.losses(plain_look(lower, words.named_PN[start : start + BATCH].float()), batch)
            total += learnt * found.item()
            tokens += learnt
    return total / tokens


@torch.inference_mode()
def grids(captioner: Captioner, view: View, count: int) -> Iterator[torch.Tensor]:
    """The backbone's last feature maps of the first `count` photos, some at a time: float32 (B, 81, 1280)."""
    captioner.eval()
    for start in range(0, count, BATCH):
        lower = torch.from_numpy(np.array(view[start : min(start + BATCH, count)])).float()
        yield captioner.encoder.grid(lower)


@torch.inference_mode()
def features(captioner: Captioner, view: View, count: int) -> torch.Tensor:
    """What the decoder looks at of the first `count` photos, float32 (count, tokens, width)."""
    return torch.cat([captioner.encoder.project(grid) for grid in grids(captioner, view, count)])
