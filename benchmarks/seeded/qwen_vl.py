"""Qwen3-VL and Qwen2.5-VL with seeded weights: tiny, or as large as the published Instruct models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.seeded.chat import save_tokenizer
from benchmarks.seeded.llava import enlarge

Size = Literal["tiny", "published"]
ModelType = Literal["qwen3_vl", "qwen2_5_vl"]
END, START, TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
BEFORE, AFTER, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
QWEN = {END: 151643, START: 151644, TURN: 151645, BEFORE: 151652, AFTER: 151653, IMAGE: 151655, VIDEO: 151656}
TINY = {token: token_id for token_id, token in enumerate(QWEN, 333)}
TINY_VOCABULARY = 340
TEMPLATE = (
    "{% for turn in messages %}" + START + "{{ turn['role'] }}\n{% if turn['content'] is string %}{{ turn['content'] }}"
    "{% else %}{% for part in turn['content'] %}{% if part['type'] == 'image' %}" + BEFORE + IMAGE + AFTER
    + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}" + TURN + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)  # fmt: skip
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}" + START + "system\nYou are a helpful assistant." + TURN + "\n{% endif %}"
)
# What the models of each size change: the text, then the tower.
PUBLISHED: dict[str, tuple[ModelType, dict[str, Any], dict[str, Any]]] = {
    "Qwen3-VL-2B": (
        "qwen3_vl",
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
    ),
    "Qwen3-VL-4B": (
        "qwen3_vl",
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
    ),
    "Qwen3-VL-8B": (
        "qwen3_vl",
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
    ),
    "Qwen2.5-VL-3B": (
        "qwen2_5_vl",
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
        | {"num_key_value_heads": 2, "max_window_layers": 70, "vocab_size": 151936},
        {},
    ),
    "Qwen2.5-VL-7B": (
        "qwen2_5_vl",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "max_window_layers": 28, "vocab_size": 152064},
        {},
    ),
}
UNTIED = ("Qwen3-VL-8B", "Qwen2.5-VL-7B")


def save(folder: Path, size: Size, seed: int = 0, model_type: ModelType = "qwen3_vl") -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`."""
    tiny = size == "tiny"
    name = next(name for name, (kind, _, _) in PUBLISHED.items() if kind == model_type)
    made: Any = tiny_config(model_type) if tiny else published_config(name)
    special = TINY if tiny else QWEN
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(made, dtype=torch.float32 if tiny else torch.bfloat16)
    if tiny:
        enlarge(model, special[TURN], 2)
    model.generation_config = GenerationConfig(
        bos_token_id=special[END], eos_token_id=[special[TURN], special[END]], pad_token_id=special[END]
    )
    model.save_pretrained(folder)
    save_chat(folder, made.text_config.vocab_size, special, model_type)
    processor(made, tiny).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nSeeded random weights.\n")


def save_chat(folder: Path, vocabulary: int, special: dict[str, int], model_type: ModelType) -> None:
    """Write a tokenizer with the chat template of the family to `folder`; like the published one, it has no BOS."""
    template = (DEFAULT_SYSTEM if model_type == "qwen2_5_vl" else "") + TEMPLATE
    save_tokenizer(folder, vocabulary, special, template, bos=None, eos=TURN, adds_bos=False)


def processor(config: Any, tiny: bool) -> Qwen2VLImageProcessorPil:
    """Return the image processor; the tiny one permits 2 to 24 tokens."""
    vision = config.vision_config
    cell = (vision.patch_size * vision.spatial_merge_size) ** 2
    large = {"shortest_edge": 65536, "longest_edge": 16777216}
    if config.model_type == "qwen2_5_vl":
        large = {"shortest_edge": 3136, "longest_edge": 12845056}
    values: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if vision.patch_size == 16 else {}
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 2 * cell, "longest_edge": 24 * cell} if tiny else large,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        **values,
    )


def published_config(name: str) -> PreTrainedConfig:
    """Return the published configuration of `name`, one of PUBLISHED."""
    model_type, text, vision = PUBLISHED[name]
    special: dict[str, Any] = {"bos_token_id": QWEN[END], "eos_token_id": QWEN[TURN], "rms_norm_eps": 1e-6}
    shared = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 16, "in_channels": 3}
    shared |= {"out_hidden_size": text["hidden_size"]}
    ids = {"image_token_id": QWEN[IMAGE], "video_token_id": QWEN[VIDEO], "tie_word_embeddings": name not in UNTIED}
    ids |= {"vision_start_token_id": QWEN[BEFORE], "vision_end_token_id": QWEN[AFTER]}
    if model_type == "qwen3_vl":
        rope: dict[str, Any] = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
        text = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 5000000} | text
        text |= {"max_position_embeddings": 262144, "rope_scaling": rope}
        vision = shared | {"patch_size": 16, "num_position_embeddings": 2304} | vision
        vision |= {"hidden_act": "gelu_pytorch_tanh"}
    else:
        rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
        text |= {"rope_theta": 1e6, "rope_scaling": rope, "max_position_embeddings": 128000}
        text |= {"sliding_window": 32768, "use_sliding_window": False}
        vision = shared | {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "hidden_act": "silu"}
        vision |= {"fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "tokens_per_second": 2}
    made: PreTrainedConfig = AutoConfig.for_model(model_type, text_config=text | special, vision_config=vision, **ids)
    return made


def tiny_config(model_type: ModelType) -> PreTrainedConfig:
    """Return a small configuration; windows of 2 × 2 tokens cut most images unevenly."""
    text: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": TINY_VOCABULARY, "max_position_embeddings": 512}
    text |= {"bos_token_id": TINY[END], "eos_token_id": TINY[TURN], "pad_token_id": TINY[END]}
    vision: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_heads": 2, "depth": 3}
    vision |= {"patch_size": 4, "out_hidden_size": 32}
    if model_type == "qwen3_vl":
        text |= {"num_hidden_layers": 3, "head_dim": 16}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
        vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]}
    else:
        text |= {"num_hidden_layers": 2}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    ids = {"image_token_id": TINY[IMAGE], "video_token_id": TINY[VIDEO]}
    ids |= {"vision_start_token_id": TINY[BEFORE], "vision_end_token_id": TINY[AFTER]}
    made: PreTrainedConfig = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **ids)
    return made
