"""Family `vision-encoder-decoder`: any vision transformer and any decoder with cross-attention.

Example: nlpconnect/vit-gpt2-image-captioning (ViT and GPT-2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.cross_attention import CrossAttentionDecoder, image_projections
from captioner.decoders.load_weights import Precision, load_weights
from captioner.errors import ModelUnsupported
from captioner.families.base import CAPTION_CONTEXT_TOKENS, NO_INSTRUCTIONS, Family, Outline, Source
from captioner.families.generation_config import published_generation, read_generation_config
from captioner.families.preprocessor_config import image_spec, read_processor
from captioner.families.vision_encoder import VisionEncoder


class VisionEncoderDecoder(Family):
    """See the module."""

    model_type = "vision-encoder-decoder"

    @classmethod
    def check(cls, folder: Path) -> Outline:
        """See Family.check."""
        image = image_spec(read_processor(folder, {}))
        config = VisionEncoderDecoderConfig.from_pretrained(folder, local_files_only=True)
        text: Any = config.decoder
        with torch.device("meta"):
            image_projections(AutoModelForCausalLM.from_config(text))  # raises ModelUnsupported for another decoder
        _start_and_stop(read_generation_config(folder, config), config)
        return Outline(image, min(text.max_position_embeddings, CAPTION_CONTEXT_TOKENS))

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        outline = cls.check(folder)
        processor = read_processor(folder, {})
        model = VisionEncoderDecoderModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        generation = model.generation_config
        start, stop = _start_and_stop(generation, model.config)
        encoder = VisionEncoder(processor, model.encoder, getattr(model, "enc_to_dec_proj", None)).eval()
        # Otherwise generate() would add the published settings to the options of every call.
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
            image=outline.image,
            prompts=NO_INSTRUCTIONS,
            start_ids=(start,),
            stop_ids=tuple(stop) if isinstance(stop, list) else (stop,),
            context_tokens=outline.context_tokens,
            generation=published_generation(generation),
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        model = load_weights(AutoModelForCausalLM, folder, precision, device)
        return CrossAttentionDecoder(model, manifest.context_tokens, manifest.feature_tokens)


def _start_and_stop(generation: GenerationConfig, config: PreTrainedConfig) -> tuple[int, int | list[int]]:
    start, stop = generation.decoder_start_token_id, generation.eos_token_id
    if start is None:
        start = getattr(config, "decoder_start_token_id", None)
    if stop is None:
        stop = config.decoder.eos_token_id
    if start is None or stop is None:
        raise ModelUnsupported(f"decoder_start_token_id is {start} and eos_token_id {stop}; both must be token ids")
    return start, stop
