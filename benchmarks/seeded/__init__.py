"""Folders laid out as models on the Hub, with the real classes and seeded random weights: for tests and timings."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

Size = Literal["tiny", "published"]

# Each module's `save(folder, size, seed, **options)`, by the name that the commands of this folder know.
SEEDED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-gpt2": ("vision_encoder_decoder", {}),
    "blip": ("blip", {}),
    "git": ("git", {}),
    "llava": ("llava", {}),
    "idefics3": ("idefics3", {"model_type": "idefics3"}),
    "smolvlm": ("idefics3", {"model_type": "smolvlm"}),
}


def save(name: str, folder: Path, size: Size, seed: int = 0) -> None:
    """Writes the model called `name` to `folder`; a KeyError is a name that is not in SEEDED."""
    module, options = SEEDED[name]
    partial(importlib.import_module(f"{__name__}.{module}").save, **options)(folder, size, seed)
