"""The captioner that comes with the package: its files stand in this folder, its words in this module.

`config.json`, `model.safetensors`, `tokenizer.json` and the model card are written by `python -m training`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Length = Literal["short", "medium", "long"]

FOLDER = Path(__file__).parent
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
LENGTHS: dict[Length, str] = {"short": "<|short|>", "medium": "<|medium|>", "long": "<|long|>"}
