"""Family `vision-encoder-decoder`: any image transformer in front of any decoder with cross-attention.

As in nlpconnect/vit-gpt2-image-captioning (ViT and GPT-2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, VisionEncoderDecoderModel

from captioner.artifacts.manifest import Manifest
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.base import Decoder
from captioner.decoders.cross_attention import CrossAttentionDecoder, image_projections
from captioner.decoders.load_weights import Precision, load_weights
from captioner.errors import ModelUnsupported
from captioner.families.base import Family, Source
from captioner.families.generation_config import published_generation
from captioner.families.preprocessor_config import Normalise, image_spec, read_processor

CONTEXT_TOKENS = 256  # more would only be cache that no caption fills: 1024 are 1.2 GB in 16 slots of vit-gpt2


class Encoder(torch.nn.Module):
    """uint8 pixels to features: the processor's normalisation, the encoder, and the step to the decoder's width."""

    def __init__(self, model: VisionEncoderDecoderModel, processor: dict[str, Any]) -> None:
        super().__init__()
        self.normalise = Normalise(processor)
        self.encoder = model.encoder
        self.projection = getattr(model, "enc_to_dec_proj", None) or torch.nn.Identity()

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, image tokens, decoder width) float32."""
        hidden = self.encoder(pixel_values=self.normalise(pixels_BHWC)).last_hidden_state
        features: torch.Tensor = self.projection(hidden)
        return features


class VisionEncoderDecoder(Family):
    """See the module."""

    model_type = "vision-encoder-decoder"

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        processor = read_processor(folder, {})
        model = VisionEncoderDecoderModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        image_projections(model.decoder)  # refuses a decoder that could not be served
        generation = model.generation_config
        start, stop = generation.decoder_start_token_id, generation.eos_token_id
        if start is None:
            start = getattr(model.config, "decoder_start_token_id", None)
        if stop is None:
            stop = model.config.decoder.eos_token_id
        if start is None or stop is None:
            raise ModelUnsupported(f"decoder_start_token_id is {start} and eos_token_id {stop}; both must be token ids")
        encoder = Encoder(model, processor).eval()
        # Without this, what the model publishes would be added to the options of every call.
        model.generation_config = GenerationConfig(
            decoder_start_token_id=start, eos_token_id=stop, pad_token_id=generation.pad_token_id
        )

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            pixel_values = encoder.normalise(pixels_HWC[None])
            written = model.generate(pixel_values=pixel_values, decoder_input_ids=torch.tensor([prompt_ids]), **options)
            return [int(token) for token in written[0][len(prompt_ids) :]]

        return Source(
            vision_encoder=encoder,
            decoder=model.decoder,
            generate=generate,
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            image=image_spec(processor),
            prompts=PromptTable({"descriptive": {"any": ""}}, "descriptive", "any"),
            start_ids=(start,),
            stop_ids=tuple(stop) if isinstance(stop, list) else (stop,),
            context_tokens=min(model.config.decoder.max_position_embeddings, CONTEXT_TOKENS),
            generation=published_generation(generation),
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        model = load_weights(AutoModelForCausalLM, folder, precision, device)
        return CrossAttentionDecoder(model, manifest.context_tokens, manifest.feature_tokens)
