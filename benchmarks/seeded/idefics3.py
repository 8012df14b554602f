"""Idefics3 and SmolVLM with seeded weights: tiny, or as large as HuggingFaceTB/SmolVLM-256M-Instruct."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.seeded.chat import save_tokenizer
from benchmarks.seeded.llava import enlarge

Size = Literal["tiny", "published"]
ModelType = Literal["idefics3", "smolvlm"]
PROCESSORS = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}
BOS, TURN = "<|im_start|>", "<end_of_utterance>"
FENCE, IMAGE, WHOLE = "<fake_token_around_image>", "<image>", "<global-img>"
GRID = 6  # rows and columns of tiles that have a token
TEMPLATE = (
    BOS + "{% for turn in messages %}{{ turn['role'] | capitalize }}:{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}" + TURN
    + "\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)  # fmt: skip


def save(folder: Path, size: Size, seed: int = 0, model_type: ModelType = "smolvlm") -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`."""
    made, special = config(size, model_type), special_ids(size)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(made)
    if size == "tiny":
        enlarge(model, special[TURN], 2)
    model.generation_config = GenerationConfig(bos_token_id=special[BOS], eos_token_id=special[TURN])
    model.save_pretrained(folder)
    save_tokenizer(folder, made.text_config.vocab_size, special, TEMPLATE, bos=BOS, eos=TURN, adds_bos=False)
    tile = made.vision_config.image_size
    PROCESSORS[model_type](
        size={"longest_edge": 4 * tile},
        max_image_size={"longest_edge": tile},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nSeeded random weights.\n")


def config(size: Size, model_type: ModelType) -> PreTrainedConfig:
    """Return the whole configuration."""
    text: dict[str, Any] = {"model_type": "llama", "rms_norm_eps": 1e-5}
    if size == "tiny":
        vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 8}
        text |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 2, "vocab_size": 340, "max_position_embeddings": 512}
    else:
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        vision |= {"image_size": 512, "patch_size": 16}
        text |= {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        text |= {"num_key_value_heads": 3, "vocab_size": 49280, "max_position_embeddings": 8192}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
    special = special_ids(size)
    text |= {"bos_token_id": special[BOS], "eos_token_id": special[TURN], "pad_token_id": special[TURN]}
    made: PreTrainedConfig = AutoConfig.for_model(
        model_type,
        vision_config=vision,
        text_config=text,
        scale_factor=2 if size == "tiny" else 4,
        image_token_id=special[IMAGE],
        pad_token_id=special[TURN],
    )
    return made


def special_ids(size: Size) -> dict[str, int]:
    """Return the ids of the special tokens, at the end of the vocabulary."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, GRID + 1) for column in range(1, GRID + 1)]
    tokens = [BOS, WHOLE, *tiles, FENCE, IMAGE, TURN]
    end = 340 if size == "tiny" else 49280
    return {token: token_id for token_id, token in enumerate(tokens, end - len(tokens))}
