"""Store the embedded model in a quarter of its size: matrices in int8 with a scale per row, other tensors in fp16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCALE = ".scale"  # suffix of the key that holds a matrix's row scales
MIN_ELEMENTS = 4096  # smaller matrices stay in fp16: int8 would save little and cost precision


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write float tensors of any shape to a safetensors file."""
    stored: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if value.ndim < 2 or value.numel() < MIN_ELEMENTS:
            stored[key] = value.to(torch.float16).contiguous()
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        stored[key] = (rows / scale).round().to(torch.int8).reshape(value.shape).contiguous()
        stored[key + SCALE] = scale[:, 0].contiguous()
    save_file(stored, path)


def load(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors whose key starts with `prefix`, as float32; the keys are returned without it."""
    stored = load_file(path)
    state = {}
    for key, value in stored.items():
        if key.startswith(prefix) and not key.endswith(SCALE):
            scale = stored.get(key + SCALE)
            full = value.float() if scale is None else value.float() * scale.reshape(-1, *[1] * (value.ndim - 1))
            state[key.removeprefix(prefix)] = full
    return state
