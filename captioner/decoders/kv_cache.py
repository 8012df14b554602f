"""Key/value caches of fixed slots behind transformers' own cache interface.

A row belongs to one caption, or to one of its beams, and is cleared when that caption starts. Each row is written at
its own position, so captions of different ages share a step; the mask ends at the row's own position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers.cache_utils import CacheLayerMixin

from captioner.decoders.rows import RowCopy


class CacheShape(NamedTuple):
    """The dimensions of one slot's cache. `image_tokens` counts the keys of cross-attention, beside the positions."""

    layers: int
    heads: int  # of keys and values
    head_size: int
    positions: int
    image_tokens: int = 0

    def slot_bytes(self, dtype: torch.dtype) -> int:
        """Return the memory of one slot, in bytes."""
        return 2 * self.layers * self.heads * self.head_size * (self.positions + self.image_tokens) * dtype.itemsize


@dataclass
class Window:
    """The rows and positions of one forward pass; all layers of a cache share one."""

    rows: slice = field(default_factory=lambda: slice(0, 0))
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # (rows, queries)
    span: int = 0  # keys visible to the longest row
    index: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # the rows, (rows, 1)

    def set(self, rows: slice, positions_BQ: torch.Tensor, span: int) -> None:
        """Start a forward pass. All layers share the index, which is made here, once."""
        self.rows, self.positions, self.span = rows, positions_BQ, span
        self.index = torch.arange(rows.start, rows.stop, device=positions_BQ.device)[:, None]


def causal_mask(positions_BQ: torch.Tensor, span: int, dtype: torch.dtype) -> torch.Tensor:
    """Return an additive mask (B, 1, Q, span): 0 up to each query's own position, then the minimum of `dtype`."""
    keys = torch.arange(span, device=positions_BQ.device)
    hidden = keys > positions_BQ[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


class SlotLayer(CacheLayerMixin):
    """Self-attention of one layer: keys and values (slots, heads, positions, head size)."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, window: Window, slots: int, shape: CacheShape, like: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.keys = like.new_zeros(slots, shape.heads, shape.positions, shape.head_size)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the cache is allocated in full at construction."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, queries, head size) and return the visible keys and values (rows, heads, span, …)."""
        index, positions = self.window.index, self.window.positions
        self.keys[index, :, positions] = key_states.transpose(1, 2)
        self.values[index, :, positions] = value_states.transpose(1, 2)
        view = (self.window.rows, slice(None), slice(0, self.window.span))
        return self.keys[view], self.values[view]

    def get_seq_length(self) -> int:
        """Return the number of positions of the longest running row."""
        return self.window.span

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) for transformers' mask builders."""
        return self.window.span, 0

    def get_max_length(self) -> int:
        """Return the number of positions that a row can hold."""
        return self.keys.shape[2]

    def clear(self, row: int) -> None:
        """Zero a row. The mask alone cannot hide a NaN that the previous caption left: 0 · NaN is NaN."""
        self.keys[row].zero_()
        self.values[row].zero_()

    def copy(self, rows: RowCopy, length: int) -> None:
        """Copy the first `length` positions of rows over other rows."""
        rows(self.keys[:, :, :length])
        rows(self.values[:, :, :length])


class CrossLayer(CacheLayerMixin):
    """Cross-attention of one layer: an image's keys and values, computed once per caption and kept in its row."""

    def __init__(self, window: Window, slots: int, shape: CacheShape, like: torch.Tensor) -> None:
        self._keys = like.new_zeros(slots, shape.heads, shape.image_tokens, shape.head_size)
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
        """Ignore the None that the base class assigns; only `write` writes rows."""

    @property
    def values(self) -> torch.Tensor:
        """Same shape as `keys`."""
        return self._values[self.window.rows]

    @values.setter
    def values(self, value: object) -> None:
        """See `keys`."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the cache is allocated in full at construction."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raise NotImplementedError: models do not call it, because the keys and values are already cached."""
        raise NotImplementedError("an image's keys and values are written once, by `write`")

    def write(self, row: int, keys_TD: torch.Tensor, values_TD: torch.Tensor) -> None:
        """Write keys and values, (up to image tokens, width) each, into a row; zero the rest, see SlotLayer.clear."""
        for cached, written in ((self._keys, keys_TD), (self._values, values_TD)):
            heads, size = cached.shape[1], cached.shape[3]
            cached[row, :, : len(written)] = written.view(-1, heads, size).transpose(0, 1)
            cached[row, :, len(written) :].zero_()

    def get_seq_length(self) -> int:
        """Return the number of image tokens."""
        return self._keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) for transformers' mask builders."""
        return self._keys.shape[2], 0

    def get_max_length(self) -> int:
        """Return the number of image tokens."""
        return self._keys.shape[2]

    def copy(self, rows: RowCopy) -> None:
        """Copy rows over other rows."""
        rows(self._keys)
        rows(self._values)
