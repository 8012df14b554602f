"""Family `concept-encoder-decoder`: the embedded captioner, small enough to travel with the code.

A frozen EfficientNet-Lite2 whose grid, whole and likeliest words a small GPT-2 looks at; made by `training/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from captioner.families.base import Decoder, Family, Source
from captioner.families.card import license_of
from captioner.families.cross_attention import CrossAttentionDecoder
from captioner.image import ImageSpec
from captioner.manifest import Manifest
from captioner.prompts import PromptTable

DECODER = "decoder."  # of its weights in model.safetensors
LENGTHS = {"short": "<|short|>", "medium": "<|medium|>", "long": "<|long|>"}  # control tokens it was trained with


class ConceptEncoderDecoder(Family):
    """See the module."""

    model_type = "concept-encoder-decoder"

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        # The server never encodes: it must not need the backbone's packages.
        from captioner.families.concept_encoder import IMAGE_PX, load_concept_encoder

        config = json.loads((folder / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return Source(
            license=license_of(folder),
            vision_encoder=load_concept_encoder(folder),
            decoder=_decoder(folder, config["decoder"]),
            tokenizer=tokenizer,
            image=ImageSpec(IMAGE_PX, IMAGE_PX, "bicubic"),
            prompts=PromptTable({"descriptive": LENGTHS}, "descriptive", "medium"),
            start_ids=(tokenizer.bos_token_id,),
            stop_ids=(tokenizer.eos_token_id,),
            context_tokens=config["decoder"]["n_positions"],
            max_tokens=80,
            repetition_penalty=config.get("repetition_penalty", 1.0),
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, slots: int, device: torch.device) -> Decoder:
        """See Family.decoder."""
        return CrossAttentionDecoder(folder, manifest, slots, device)


def _decoder(folder: Path, config: dict[str, Any]) -> GPT2LMHeadModel:
    decoder = GPT2LMHeadModel(GPT2Config(**config))
    weights = load_file(folder / "model.safetensors")
    state = {k.removeprefix(DECODER): v.float() for k, v in weights.items() if k.startswith(DECODER)}
    decoder.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})  # tied, so stored once
    decoder.eval()
    return decoder
