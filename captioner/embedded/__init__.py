"""The model that ships with the package: this folder holds its files, this module its name and special tokens.

`python -m training` writes `config.json`, `model.safetensors`, `tokenizer.json` and the model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Form = Literal["short", "medium", "long", "plain", "tags"]  # the kinds of text that it was trained to write

EMBEDDED = "captioner-embedded"  # its name wherever a Hugging Face id is expected
EMBEDDED_FOLDER = Path(__file__).parent
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
FORMS: dict[Form, str] = {form: f"<|{form}|>" for form in ("short", "medium", "long", "plain", "tags")}
