"""Gemma 3 with seeded weights: tiny, or as large as google/gemma-3-4b-it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from benchmarks.seeded.gemma import NAMED, enlarge, save_tokenizer

Size = Literal["tiny", "published"]
TURN, END = "<start_of_turn>", "<end_of_turn>"
IMAGE_START, IMAGE_END, IMAGE = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
PUBLISHED = {TURN: 105, END: 106, IMAGE_START: 255999, IMAGE_END: 256000, IMAGE: 262144}
TINY = {TURN: 5, END: 6, IMAGE_START: 7, IMAGE_END: 8, IMAGE: 9}
TEMPLATE = (
    "{{ bos_token }}{% set system = namespace(text='') %}{% for turn in messages %}{% if turn['role'] == 'system' %}"
    "{% set system.text = turn['content'] + '\n\n' %}{% else %}" + TURN + "{{ turn['role'] }}\n{{ system.text }}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}" + IMAGE_START
    + "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}" + END + "\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + TURN + "model\n{% endif %}"
)  # fmt: skip


def save(folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`; the published size takes 9 GB."""
    made: Any = config(size)
    special = TINY if size == "tiny" else PUBLISHED
    torch.manual_seed(seed)
    dtype = torch.float32 if size == "tiny" else torch.bfloat16
    model = Gemma3ForConditionalGeneration._from_config(made, dtype=dtype)
    if size == "tiny":
        enlarge(model, special[END], 2, 0.05)
    model.generation_config = GenerationConfig(
        bos_token_id=NAMED["<bos>"],
        eos_token_id=[NAMED["<eos>"], special[END]],
        pad_token_id=NAMED["<pad>"],
        do_sample=True,
        top_k=64,
        top_p=0.95,
    )
    model.save_pretrained(folder)
    save_tokenizer(
        folder,
        made.text_config.vocab_size,
        special,
        TEMPLATE,
        boi_token=IMAGE_START,
        eoi_token=IMAGE_END,
        image_token=IMAGE,
    )
    side = made.vision_config.image_size
    Gemma3ImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\nSeeded random weights.\n")


def config(size: Size) -> Gemma3Config:
    """Return the whole configuration, with the keys and omissions of the published one."""
    special = TINY if size == "tiny" else PUBLISHED
    vision: dict[str, Any] = {"model_type": "siglip_vision_model", "vision_use_head": False}
    text: dict[str, Any] = {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    if size == "tiny":
        vision |= {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 4}
        text |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "sliding_window_pattern": 3}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 8}
        text |= {"vocab_size": 340, "max_position_embeddings": 512, "sliding_window": 256}
    else:
        vision |= {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        vision |= {"image_size": 896, "patch_size": 14}
        text |= {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    return Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=16 if size == "tiny" else 256,
        boi_token_index=special[IMAGE_START],
        eoi_token_index=special[IMAGE_END],
        image_token_index=special[IMAGE],
    )
