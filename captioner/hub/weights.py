"""The tensors of safetensors files: names, types and shapes, without their data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import ArtefactBroken


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file. `dtype` is safetensors' own name, such as BF16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return the number of its elements."""
        return math.prod(self.shape)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file on this disk by name. Raises ArtefactBroken, or FileNotFoundError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: Tensor(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except SafetensorError as error:
        raise ArtefactBroken(f"the header of {path} cannot be read: {error}") from error
