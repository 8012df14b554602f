"""What a family of captioners must say of itself, to be exported and to be served.

`Family.load` is the exporter's side and holds torch modules; `Decoder` is the server's side and holds the published
decoder and its cache. Neither knows Triton, and neither knows the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from captioner.image import ImageSpec
from captioner.manifest import Manifest
from captioner.prompts import PromptTable


@dataclass(frozen=True)
class Source:
    """A captioner as its authors published it, taken apart at the seam between image and text."""

    license: str
    vision_encoder: torch.nn.Module  # uint8 (B, height, width, 3) → float32 (B, image tokens, feature width)
    decoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image: ImageSpec
    prompts: PromptTable
    start_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    context_tokens: int
    max_tokens: int
    repetition_penalty: float


class Decoder(ABC):
    """A published decoder with a key/value cache of fixed slots; the running ones are always the first rows."""

    @abstractmethod
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> torch.Tensor:
        """Starts a caption in cache row `row`.

        features: (image tokens, feature width). Returns the next token's logits, (vocabulary,).
        """

    @abstractmethod
    def decode(self, token_ids: list[int], positions: list[int]) -> torch.Tensor:
        """One step for rows 0..n−1: each row's last token at its own position. Returns logits (n, vocabulary)."""

    @abstractmethod
    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of cache row `source` over row `target`."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory the cache of all slots takes, in bytes."""


class Family(ABC):
    """One kind of captioner; `model_type` is the Hugging Face name in its config.json."""

    model_type: ClassVar[str]

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Source:
        """Reads a model folder (config.json, safetensors, tokenizer); ModelUnsupported names what does not fit."""

    @classmethod
    @abstractmethod
    def decoder(cls, folder: Path, manifest: Manifest, slots: int, device: torch.device) -> Decoder:
        """The published decoder in `folder`, with a cache for `slots` captions."""
