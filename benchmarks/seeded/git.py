"""GIT with seeded weights: tiny, or as large as microsoft/git-base-coco."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GitConfig, GitForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.seeded.wordpiece import save_tokenizer

Size = Literal["tiny", "published"]
BERT = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
TINY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
TINY_SEP_BIAS = 2.0  # makes stop tokens likely in the tiny model, so that captions differ in length


def save(folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`."""
    config, special = _config(size), TINY if size == "tiny" else BERT
    torch.manual_seed(seed)
    model = GitForCausalLM(config)
    if size == "tiny":
        with torch.no_grad():
            model.output.bias[special["[SEP]"]] += TINY_SEP_BIAS
    model.save_pretrained(folder)
    save_tokenizer(folder, config.vocab_size, special)
    vision: Any = config.vision_config
    side = vision.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nSeeded random weights.\n")


def _config(size: Size) -> GitConfig:
    if size == "published":
        return GitConfig()  # the defaults are git-base-coco's dimensions
    vision = {
        "hidden_size": 20,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.3,
    }
    return GitConfig(
        vision_config=vision,
        vocab_size=150,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        bos_token_id=TINY["[CLS]"],
        eos_token_id=TINY["[SEP]"],
    )
