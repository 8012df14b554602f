"""Indices and row copies that never wait for the device.

Indexing a CUDA tensor with a Python list, or with a tensor on the CPU, copies the index from pageable memory and waits
for everything that was launched before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def upload(ids: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return int64 ids on `device`. On CUDA, the copy is complete once the stream has reached it."""
    tensor = torch.tensor(ids, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class RowCopy:
    """Copies rows of any number of tensors over other rows, which must be distinct.

    All in one step: a target may also be a source.
    """

    def __init__(self, sources: Sequence[int], targets: Sequence[int], device: torch.device) -> None:
        self._pairs = list(zip(sources, targets, strict=True))
        self._index: tuple[torch.Tensor, torch.Tensor] | None = None
        if not set(sources).isdisjoint(targets):
            self._index = upload(sources, device), upload(targets, device)

    def __call__(self, tensor: torch.Tensor) -> None:
        """Copy the rows of `tensor`, (rows, …), in place."""
        if self._index is not None:
            sources, targets = self._index
            tensor[targets] = tensor[sources]
            return
        for source, target in self._pairs:
            tensor[target].copy_(tensor[source])
