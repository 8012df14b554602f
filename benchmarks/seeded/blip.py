"""BLIP with seeded weights: tiny, or as large as Salesforce/blip-image-captioning-base and -large."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.seeded.wordpiece import save_tokenizer

Size = Literal["tiny", "published", "large"]
BERT = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
TINY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
TINY_TOKENS = 148
TINY_SEP_BIAS = 3.5  # makes stop tokens likely in the tiny model, so that captions differ in length


def save(folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`."""
    config, special = _config(size), TINY if size == "tiny" else BERT
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(config)
    if size == "tiny":
        with torch.no_grad():
            model.text_decoder.cls.predictions.bias[special["[SEP]"]] += TINY_SEP_BIAS
    model.save_pretrained(folder)
    text: Any = config.text_config
    vision: Any = config.vision_config
    save_tokenizer(folder, text.vocab_size - 2, special)  # BOS and [ENC] are not in the vocabulary
    side = vision.image_size
    BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\nSeeded random weights.\n")


def _config(size: Size) -> BlipConfig:
    if size == "tiny":
        small: dict[str, Any] = {
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        vision = small | {"hidden_size": 20, "image_size": 32, "patch_size": 8, "initializer_range": 0.3}
        text = small | {
            "vocab_size": TINY_TOKENS + 2,
            "bos_token_id": TINY_TOKENS,
            "sep_token_id": TINY["[SEP]"],
            "eos_token_id": TINY["[SEP]"],
            "max_position_embeddings": 48,
            "initializer_range": 0.3,
        }
        return BlipConfig(text_config=text, vision_config=vision, initializer_range=0.3)
    vision = {"image_size": 384, "patch_size": 16, "initializer_range": 0.02}
    if size == "large":
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {
        "num_attention_heads": 12,
        "vocab_size": 30524,
        "bos_token_id": 30522,
        "eos_token_id": 2,
        "sep_token_id": 102,
    }
    return BlipConfig(text_config=text, vision_config=vision)
