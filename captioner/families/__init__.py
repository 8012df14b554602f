"""The registry of families, one for each Hugging Face model type.

Looking up a family imports only its own module, so a server does not load the code of other families.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from captioner.errors import ModelUnsupported

if TYPE_CHECKING:
    from captioner.families.base import Family

FAMILIES = {  # model_type: "module:Class"
    "blip": "blip:Blip",
    "concept-encoder-decoder": "concept_encoder_decoder:ConceptEncoderDecoder",
    "florence2": "florence2:Florence2",
    "gemma3": "gemma3:Gemma3",
    "git": "git:Git",
    "idefics3": "idefics3:Idefics3",
    "llava": "llava:Llava",
    "paligemma": "paligemma:PaliGemma",
    "qwen2_5_vl": "qwen2_5_vl:Qwen2_5VL",
    "qwen3_vl": "qwen3_vl:Qwen3VL",
    "smolvlm": "idefics3:SmolVLM",
    "vision-encoder-decoder": "vision_encoder_decoder:VisionEncoderDecoder",
}


def family(model_type: str) -> type[Family]:
    """Return the family for a config.json's `model_type`. Raises ModelUnsupported, which lists the known types."""
    if model_type not in FAMILIES:
        raise ModelUnsupported(f"model_type {model_type!r} has no family; the families are {', '.join(FAMILIES)}")
    module, _, name = FAMILIES[model_type].partition(":")
    found: type[Family] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
