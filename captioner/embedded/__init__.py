"""The captioner that comes with the package: its files stand in this folder, its words in this module.

`config.json`, `model.safetensors`, `tokenizer.json` and the model card are written by `python -m training`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Form = Literal["short", "medium", "long", "plain", "tags"]  # of a text: what it was taught to write

EMBEDDED = "captioner-embedded"  # its name, where a Hugging Face id is expected
EMBEDDED_FOLDER = Path(__file__).parent
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
FORMS: dict[Form, str] = {form: f"<|{form}|>" for form in ("short", "medium", "long", "plain", "tags")}
