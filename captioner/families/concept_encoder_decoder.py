"""Family `concept-encoder-decoder`: the embedded captioner, small enough to ship with the code.

A small GPT-2 reads the features of an EfficientNet-Lite2 through cross-attention; `training/` trains both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from captioner.artifacts.confidence import Calibration
from captioner.artifacts.manifest import Generation, Manifest
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.base import Decoder
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.load_weights import Precision, load_weights
from captioner.embedded import weights
from captioner.embedded.styles import DEFAULT_LENGTH, DEFAULT_STYLE, STYLES
from captioner.families.base import Family, Outline, Source
from captioner.image.spec import ImageSpec

DECODER = "decoder."  # prefix of its weights in model.safetensors
PROMPTS = PromptTable(STYLES, DEFAULT_STYLE, DEFAULT_LENGTH)


class ConceptEncoderDecoder(Family):
    """See the module."""

    model_type = "concept-encoder-decoder"

    @classmethod
    def check(cls, folder: Path) -> Outline:
        """See Family.check."""
        from captioner.families.concept_encoder import IMAGE_PX  # see `load`

        config = json.loads((folder / "config.json").read_text())
        return Outline(ImageSpec(IMAGE_PX, IMAGE_PX, "bicubic"), config["decoder"]["n_positions"])

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        # The server never encodes, so it must not need the backbone's packages.
        from captioner.families.concept_encoder import load_concept_encoder

        outline = cls.check(folder)
        config = json.loads((folder / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder, decoder = load_concept_encoder(folder), _decoder(folder, config["decoder"])
        model: Any = decoder  # mypy rejects calls of generate() as transformers annotates it

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            written = model.generate(
                torch.tensor([prompt_ids]), encoder_hidden_states=encoder(pixels_HWC[None]), **options
            )
            return [int(token) for token in written[0][len(prompt_ids) :]]

        return Source(
            vision_encoder=encoder,
            decoder=decoder,
            generate=generate,
            tokenizer=tokenizer,
            image=outline.image,
            prompts=PROMPTS,
            start_ids=(tokenizer.bos_token_id,),
            stop_ids=(tokenizer.eos_token_id,),
            context_tokens=outline.context_tokens,
            generation=Generation(**config["generation"]),
            calibration=Calibration(**config["calibration"]) if "calibration" in config else None,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        model = load_weights(GPT2LMHeadModel, folder, precision, device)
        return CrossAttentionDecoder(model, manifest.context_tokens, manifest.feature_tokens)


def _decoder(folder: Path, config: dict[str, Any]) -> GPT2LMHeadModel:
    decoder = GPT2LMHeadModel(GPT2Config(**config))
    state = weights.load(folder / "model.safetensors", DECODER)
    decoder.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})  # tied, so stored once
    decoder.eval()
    return decoder
