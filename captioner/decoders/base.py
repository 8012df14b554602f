"""The server side of a family: a published decoder and its key/value cache of fixed slots.

It knows one forward pass and the cache rows that it reads and writes. The engine knows which request holds a row, which
token follows from the logits, and when a caption ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from captioner.decoders.kv_cache import CacheShape, SlotLayer, Window
from captioner.decoders.rows import RowCopy


class Decoder(ABC):
    """A decoder with `allocate`d slots; the running captions always hold the first rows."""

    def __init__(self, model: PreTrainedModel, shape: CacheShape) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
        self.shape = shape
        self.context_tokens = shape.positions  # prompt and caption ids that a row can hold
        self.window = Window()
        self.text_layers: list[SlotLayer] = []

    def allocate(self, slots: int) -> None:
        """Allocate the cache of `slots` captions, `slots` × `slot_bytes`."""
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        self.text_layers = [SlotLayer(self.window, slots, self.shape, like) for _ in range(self.shape.layers)]
        self.cache = Cache(layers=list(self.text_layers))

    @abstractmethod
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """Start a caption in cache row `row`: cache the image and all prompt ids but the last.

        features: (image tokens, feature width), or (rows, columns, feature width) for decoders that place the tokens on
        a grid. `decode` reads the last prompt id, so a new caption shares its first
        step with the running ones.
        """

    @abstractmethod
    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        """Run one step of rows 0..B−1 and return logits (B, vocabulary).

        Each row reads its last id at its own position, which is below `span`. A position counts prompt and caption ids
        from 0. Shapes depend only on B and `span`, and nothing is read back to the host, so a CUDA graph can hold it.
        """

    def copy(self, rows: RowCopy, length: int) -> None:
        """Copy rows over other rows, up to `length` prompt and caption ids."""
        for layer in self.text_layers:
            layer.copy(rows, length)

    def stage(self, features: torch.Tensor) -> torch.Tensor:
        """Return features so that `prefill` need not wait for their upload. Any thread may call it."""
        return features.to(self.dtype).pin_memory() if self.device.type == "cuda" else features

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot's cache, in bytes."""
        return self.shape.slot_bytes(self.dtype)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def vocabulary(self) -> int:
        """Number of logits per row."""
        return int(self.model.config.get_text_config().vocab_size)
