"""PaliGemma 1 and 2 with seeded weights: tiny, or as large as google/paligemma-3b-mix-224 and paligemma2-3b-mix-224."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.seeded.gemma import NAMED, enlarge, save_tokenizer

Size = Literal["tiny", "published"]
TextModel = Literal["gemma", "gemma2"]
END, IMAGE = "<end_of_turn>", "<image>"
PUBLISHED = {END: 107, IMAGE: 257152}
TINY = {END: 5, IMAGE: 6}


def save(folder: Path, size: Size, seed: int = 0, text_model: TextModel = "gemma2") -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`; the published size takes 6 GB."""
    made: Any = config(size, text_model)
    torch.manual_seed(seed)
    dtype = torch.float32 if size == "tiny" else torch.bfloat16
    model = PaliGemmaForConditionalGeneration._from_config(made, dtype=dtype)
    if size == "tiny":
        enlarge(model, NAMED["<eos>"], 2 if text_model == "gemma2" else 1.5, 0.1)
    model.generation_config = GenerationConfig(
        bos_token_id=NAMED["<bos>"], eos_token_id=NAMED["<eos>"], pad_token_id=NAMED["<pad>"]
    )
    model.save_pretrained(folder)
    special = TINY if size == "tiny" else PUBLISHED
    save_tokenizer(folder, made.text_config.vocab_size, special, None, image_token=IMAGE)
    side = made.vision_config.image_size
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\nSeeded random weights.\n")


def config(size: Size, text_model: TextModel) -> PaliGemmaConfig:
    """Return the whole configuration. The tiny Gemma 2 has low caps, so that they change the captions."""
    vision: dict[str, Any] = {"model_type": "siglip_vision_model", "vision_use_head": False}
    text: dict[str, Any] = {"model_type": text_model}
    if size == "tiny":
        vision |= {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 8}
        text |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 340, "max_position_embeddings": 512}
        if text_model == "gemma2":
            text |= {"query_pre_attn_scalar": 8, "sliding_window": 300}
            text |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
    else:
        vision |= {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        vision |= {"image_size": 224, "patch_size": 14}
        text |= {"num_attention_heads": 8, "head_dim": 256, "vocab_size": 257216}
        if text_model == "gemma2":
            text |= {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_key_value_heads": 4}
        else:
            text |= {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_key_value_heads": 1}
    return PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=(TINY if size == "tiny" else PUBLISHED)[IMAGE],
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )
