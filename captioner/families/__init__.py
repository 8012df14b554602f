"""One file per Hugging Face model type; an unknown type is answered with the known ones."""

from __future__ import annotations

from captioner.errors import ModelUnsupported
from captioner.families.base import Family
from captioner.families.blip import Blip
from captioner.families.concept_encoder_decoder import ConceptEncoderDecoder
from captioner.families.git import Git
from captioner.families.idefics3 import Idefics3, SmolVLM
from captioner.families.llava import Llava
from captioner.families.vision_encoder_decoder import VisionEncoderDecoder

FAMILIES: dict[str, type[Family]] = {
    kind.model_type: kind for kind in (Blip, ConceptEncoderDecoder, Git, Idefics3, Llava, SmolVLM, VisionEncoderDecoder)
}


def family(model_type: str) -> type[Family]:
    """The family registered under a config.json's `model_type`; ModelUnsupported lists the known."""
    if model_type not in FAMILIES:
        raise ModelUnsupported(
            f"model_type {model_type!r} has no family; the families are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
