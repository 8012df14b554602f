"""Key/value caches of fixed slots behind transformers' own cache interface.

A row belongs to one caption and is cleared for it. Each row is written at its own position, so captions of any age
share a step; the mask ends at the row's own position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers.cache_utils import CacheLayerMixin


@dataclass
class Window:
    """The rows and positions one forward pass touches; every layer of a cache shares one."""

    rows: slice = field(default_factory=lambda: slice(0, 0))
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # (rows, queries)
    span: int = 0  # keys visible to the longest row


class SlotLayer(CacheLayerMixin):
    """Self-attention of one layer: keys and values (slots, heads, context, head size)."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(
        self, window: Window, slots: int, heads: int, context: int, head_size: int, like: torch.Tensor
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.keys = like.new_zeros(slots, heads, context, head_size)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is lazy: the cache is as large at the start as it will ever be."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes (rows, heads, queries, head size) and returns what the rows may look at, (rows, heads, span, …)."""
        rows = torch.arange(self.window.rows.start, self.window.rows.stop, device=self.keys.device)[:, None]
        self.keys[rows, :, self.window.positions] = key_states.transpose(1, 2)
        self.values[rows, :, self.window.positions] = value_states.transpose(1, 2)
        view = (self.window.rows, slice(None), slice(0, self.window.span))
        return self.keys[view], self.values[view]

    def get_seq_length(self) -> int:
        """Positions the longest running row holds."""
        return self.window.span

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) for transformers' mask builders."""
        return self.window.span, 0

    def get_max_length(self) -> int:
        """Positions a row can hold."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def clear(self, row: int) -> None:
        """Forgets a row's last caption. Where that ended in NaN, no mask would hide it: 0 · NaN is NaN."""
        self.keys[row].zero_()
        self.values[row].zero_()

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a row over another row."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]


class CrossLayer(CacheLayerMixin):
    """Cross-attention of one layer: an image's keys and values, computed once a caption and kept in its row."""

    def __init__(self, window: Window, slots: int, heads: int, tokens: int, head_size: int, like: torch.Tensor) -> None:
        self._keys = like.new_zeros(slots, heads, tokens, head_size)
        self._values = torch.zeros_like(self._keys)
        self.window = window
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True

    @property
    def keys(self) -> torch.Tensor:
        """(rows of this pass, heads, image tokens, head size)."""
        return self._keys[self.window.rows]

    @keys.setter
    def keys(self, value: object) -> None:
        """The base class begins with None; rows are only ever written by `update`."""

    @property
    def values(self) -> torch.Tensor:
        """As `keys`."""
        return self._values[self.window.rows]

    @values.setter
    def values(self, value: object) -> None:
        """As for `keys`."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is lazy."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the rows of this pass, (rows, heads, image tokens, head size)."""
        self._keys[self.window.rows] = key_states
        self._values[self.window.rows] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Image tokens."""
        return self._keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) for transformers' mask builders."""
        return self._keys.shape[2], 0

    def get_max_length(self) -> int:
        """Image tokens."""
        return self._keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self._keys.nbytes + self._values.nbytes

    def move(self, source: int, target: int) -> None:
        """Copies a row over another row."""
        self._keys[target] = self._keys[source]
        self._values[target] = self._values[source]
