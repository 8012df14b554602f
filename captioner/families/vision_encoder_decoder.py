"""Family `vision-encoder-decoder`: any image transformer in front of any decoder with cross-attention.

As in nlpconnect/vit-gpt2-image-captioning (ViT and GPT-2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, VisionEncoderDecoderModel

from captioner.errors import ModelUnsupported
from captioner.families.base import Decoder, Family, Source
from captioner.families.card import license_of
from captioner.families.cross_attention import CrossAttentionDecoder
from captioner.image import ImageSpec
from captioner.manifest import Manifest
from captioner.prompts import PromptTable

RESAMPLE: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


CONTEXT_TOKENS = 256  # more would only be cache that no caption fills: 1024 are 1.2 GB in 16 slots of vit-gpt2


class NormalisedEncoder(torch.nn.Module):
    """uint8 pixels to features: the processor's normalisation, the encoder, and the step to the decoder's width."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: VisionEncoderDecoderModel, processor: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.projection = getattr(model, "enc_to_dec_proj", None) or torch.nn.Identity()
        scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
        normalise = processor.get("do_normalize", True)
        mean = torch.tensor(processor.get("image_mean", [0.5] * 3) if normalise else [0.0] * 3)
        std = torch.tensor(processor.get("image_std", [0.5] * 3) if normalise else [1.0] * 3)
        self.register_buffer("factor", (scale / std).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, image tokens, decoder width) float32."""
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() * self.factor + self.shift
        features: torch.Tensor = self.projection(self.encoder(pixel_values=pixels_BCHW).last_hidden_state)
        return features


class VisionEncoderDecoder(Family):
    """See the module."""

    model_type = "vision-encoder-decoder"

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        model = VisionEncoderDecoderModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        generation = model.generation_config
        start, stop = generation.decoder_start_token_id, generation.eos_token_id
        if start is None:
            start = getattr(model.config, "decoder_start_token_id", None)
        if stop is None:
            stop = model.config.decoder.eos_token_id
        if start is None or stop is None:
            raise ModelUnsupported(f"decoder_start_token_id is {start} and eos_token_id {stop}; both must be token ids")
        return Source(
            license=license_of(folder),
            vision_encoder=NormalisedEncoder(model, processor).eval(),
            decoder=model.decoder,
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            image=_image_spec(processor),
            prompts=PromptTable({"descriptive": {"any": ""}}, "descriptive", "any"),
            start_ids=(start,),
            stop_ids=tuple(stop) if isinstance(stop, list) else (stop,),
            context_tokens=min(model.config.decoder.max_position_embeddings, CONTEXT_TOKENS),
            max_tokens=64,
            repetition_penalty=1.0,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, slots: int, device: torch.device) -> Decoder:
        """See Family.decoder."""
        return CrossAttentionDecoder(folder, manifest, slots, device)


def _image_spec(processor: dict[str, Any]) -> ImageSpec:
    size = processor.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, dict) or "height" not in size or "width" not in size or processor.get("do_center_crop"):
        raise ModelUnsupported(
            f"preprocessor_config.json asks for size {size!r} and do_center_crop "
            f"{processor.get('do_center_crop', False)}; only a straight resize to height and width is served"
        )
    resample = RESAMPLE.get(processor.get("resample", 2))
    if resample is None:
        raise ModelUnsupported(f"resample {processor['resample']} is none of Pillow's 1, 2 and 3")
    return ImageSpec(size["height"], size["width"], resample)
