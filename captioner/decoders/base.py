"""The server's side of a family: a published decoder and its key/value cache of fixed slots.

It knows one forward pass and the rows it touches. Who is in a row, what is drawn from the logits and when a caption
ends is the engine's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from captioner.decoders.kv_cache import CacheShape, SlotLayer, Window


class Decoder(ABC):
    """A decoder with `allocate`d slots; the running ones are always the first rows."""

    def __init__(self, model: PreTrainedModel, shape: CacheShape) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
        self.shape = shape
        self.context_tokens = shape.positions  # ids of prompt and caption that a row can hold
        self.window = Window()
        self.text_layers: list[SlotLayer] = []

    def allocate(self, slots: int) -> None:
        """Takes the memory of `slots` captions, `slots` × `slot_bytes`."""
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        self.text_layers = [SlotLayer(self.window, slots, self.shape, like) for _ in range(self.shape.layers)]
        self.cache = Cache(layers=list(self.text_layers))

    @abstractmethod
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """Starts a caption in cache row `row`: the image and all of the prompt but its last id.

        features: (image tokens, feature width). The last id is the first that `decode` reads: a caption begins in the
        step that the others are taking anyway.
        """

    @abstractmethod
    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        """One step of rows 0..B−1: each row's last id at its own position, all of them below `span`.

        A position counts the ids of prompt and caption from 0. Returns logits (B, vocabulary). Shapes depend on B and
        `span` alone and nothing is read back to the host, so that a CUDA graph can hold it.
        """

    def copy(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copies rows over other rows, as far as `length` ids of prompt and caption reach."""
        for layer in self.text_layers:
            layer.copy(sources, targets, length)

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
        """Logits a step gives for each row."""
        return int(self.model.config.get_text_config().vocab_size)
