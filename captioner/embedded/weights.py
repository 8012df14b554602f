"""The embedded model's weights in a quarter of their size: matrices in int8, a scale a row; the rest in float16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCALE = ".scale"  # after a matrix's key: its rows' scales
LEAST = 4096  # elements; what is smaller is not worth its error


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Writes float tensors of any shape."""
    stored: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if value.ndim < 2 or value.numel() < LEAST:
            stored[key] = value.to(torch.float16).contiguous()
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        stored[key] = (rows / scale).round().to(torch.int8).reshape(value.shape).contiguous()
        stored[key + SCALE] = scale[:, 0].contiguous()
    save_file(stored, path)


def load(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose key begins with `prefix`, without it, as float32."""
    stored = load_file(path)
    state = {}
    for key, value in stored.items():
        if key.startswith(prefix) and not key.endswith(SCALE):
            scale = stored.get(key + SCALE)
            full = value.float() if scale is None else value.float() * scale.reshape(-1, *[1] * (value.ndim - 1))
            state[key.removeprefix(prefix)] = full
    return state
