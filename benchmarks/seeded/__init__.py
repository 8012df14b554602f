"""Write model folders like those on the Hub, with the real classes and seeded random weights, for tests and timings."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

Size = Literal["tiny", "published"]

# Name in the benchmarks' commands → module and options of its `save(folder, size, seed, **options)`.
SEEDED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-gpt2": ("vision_encoder_decoder", {}),
    "blip": ("blip", {}),
    "git": ("git", {}),
    "florence2": ("florence2", {}),
    "llava": ("llava", {}),
    "idefics3": ("idefics3", {"model_type": "idefics3"}),
    "smolvlm": ("idefics3", {"model_type": "smolvlm"}),
    "gemma3": ("gemma3", {}),
    "paligemma": ("paligemma", {"text_model": "gemma"}),
    "paligemma2": ("paligemma", {"text_model": "gemma2"}),
    "qwen3-vl": ("qwen_vl", {"model_type": "qwen3_vl"}),
    "qwen2.5-vl": ("qwen_vl", {"model_type": "qwen2_5_vl"}),
}


def save(name: str, folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model called `name` to `folder`; raise KeyError for a name that is not in SEEDED."""
    module, options = SEEDED[name]
    partial(importlib.import_module(f"{__name__}.{module}").save, **options)(folder, size, seed)
