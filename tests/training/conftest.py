"""A tiny captioner with four captioned photos, and the shipped one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from captioner.embedded import EMBEDDED_FOLDER
from captioner.families.concept_encoder import CLASSES, LOWER_SHAPE, ConceptEncoderConfig
from training import checkpoint
from training.dataset import Caption, Photo
from training.model import Captioner
from training.tokenizer import CaptionTokenizer

TEXTS = ("A brown dog on a red sofa", "Two boats on a lake", "A bowl of green apples", "A man rides a white horse")
PHOTOS = [Photo(f"{i}.webp", (Caption(text, "short"),), synthetic=True) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="session")
def shipped() -> tuple[Captioner, CaptionTokenizer]:
    """The shipped captioner; do not change it."""
    return checkpoint.load(EMBEDDED_FOLDER)


def tiny_captioner() -> tuple[Captioner, CaptionTokenizer]:
    """A captioner with a decoder of one layer and three words, always with the same weights."""
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.train(TEXTS, vocabulary_size=300)
    words = ConceptEncoderConfig(("dog", "boat", "apple"), (0, 1, 2, 0) * (CLASSES // 4), (0, 1), width=32, concepts=2)
    captioner = Captioner.build(
        words, len(tokenizer), tokenizer.bos, tokenizer.eos, tokenizer.pad, layers=1, heads=2, dropout=0.0
    )
    return captioner, tokenizer


def lower_features(count: int) -> NDArray[np.float32]:
    """Random outputs of the backbone's lower blocks, far enough apart to be told apart."""
    torch.manual_seed(0)
    features: NDArray[np.float32] = (
        torch.randn(count, *LOWER_SHAPE) * torch.arange(1, count + 1)[:, None, None, None]
    ).numpy()
    return features
