"""LLaVA with seeded weights: tiny, or as large as fancyfeast/llama-joycaption-beta-one-hf-llava."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.seeded.chat import save_tokenizer

Size = Literal["tiny", "published"]
BOS, TURN, START, END = "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"
BEFORE, IMAGE, AFTER = (f"<|reserved_special_token_{number}|>" for number in (70, 69, 71))
LLAMA = {BOS: 128000, START: 128006, END: 128007, TURN: 128009, IMAGE: 128077, BEFORE: 128078, AFTER: 128079}
TINY = {token: token_id for token_id, token in enumerate(LLAMA, 290)}
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}" + START + "{{ turn['role'] }}" + END + "\n\n"
    "{% if turn['role'] == 'user' %}" + BEFORE + IMAGE + AFTER + "{% endif %}{{ turn['content'] | trim }}" + TURN
    + "{% endfor %}{% if add_generation_prompt %}" + START + "assistant" + END + "\n\n{% endif %}"
)  # fmt: skip
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def save(folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`; the published size takes 17 GB."""
    made: Any = config(size)
    special = TINY if size == "tiny" else LLAMA
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(made, dtype=torch.float32 if size == "tiny" else torch.bfloat16)
    if size == "tiny":
        enlarge(model, special[TURN])
    model.generation_config = GenerationConfig(
        bos_token_id=special[BOS], eos_token_id=[special[TURN]], do_sample=True, temperature=0.6, top_p=0.9
    )
    model.save_pretrained(folder)
    save_tokenizer(folder, made.text_config.vocab_size, special, TEMPLATE, bos=BOS, eos=TURN, adds_bos=True)
    side = made.vision_config.image_size
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: llama3.1\n---\nSeeded random weights.\n")


def config(size: Size) -> LlavaConfig:
    """Return the whole configuration. In the tiny size too, the patches do not cover the whole image."""
    vision: dict[str, Any] = {"model_type": "siglip_vision_model", "vision_use_head": False}
    text: dict[str, Any] = {"model_type": "llama", "rope_parameters": ROPE, "rms_norm_eps": 1e-5}
    if size == "tiny":
        vision |= {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 7}
        text |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512}
        text["rope_parameters"] = ROPE | {"original_max_position_embeddings": 64}
    else:
        vision |= {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        vision |= {"image_size": 384, "patch_size": 14}
        text |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
        text |= {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}
    special = TINY if size == "tiny" else LLAMA
    text |= {"bos_token_id": special[BOS], "eos_token_id": special[TURN], "pad_token_id": None}
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special[IMAGE],
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )


@torch.no_grad()
def enlarge(model: Any, stop_id: int, stop_scale: float = 1.5) -> None:
    """Draw large weights, so that captions depend on the image and near-ties are rare; scale `stop_id`'s logit."""
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.normal_(std=0.3)
    model.lm_head.weight[stop_id] *= stop_scale
