"""Family `blip`: a vision transformer and a BERT with cross-attention.

Examples: Salesforce/blip-image-captioning-base and -large. A prompt is the beginning of the caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.load_weights import Precision, load_weights
from captioner.errors import ModelUnsupported
from captioner.families.base import CAPTION_CONTEXT_TOKENS, NO_INSTRUCTIONS, Family, Outline, Source
from captioner.families.generation_config import published_generation
from captioner.families.preprocessor_config import CLIP_DEFAULTS, check_side, image_spec, read_processor
from captioner.families.vision_encoder import VisionEncoder

PROCESSOR_DEFAULTS = CLIP_DEFAULTS | {"size": {"height": 384, "width": 384}}


class Blip(Family):
    """See the module."""

    model_type = "blip"

    @classmethod
    def check(cls, folder: Path) -> Outline:
        """See Family.check."""
        image = image_spec(read_processor(folder, PROCESSOR_DEFAULTS))
        config = BlipConfig.from_pretrained(folder, local_files_only=True)
        text: Any = config.text_config
        check_side(image, config.vision_config)
        _check(text)
        return Outline(image, min(text.max_position_embeddings, CAPTION_CONTEXT_TOKENS))

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        outline = cls.check(folder)
        processor = read_processor(folder, PROCESSOR_DEFAULTS)
        model = BlipForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        text: Any = model.config.text_config
        encoder = VisionEncoder(processor, model.vision_model).eval()

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            # The original always starts with BOS and drops the last input id, which is its tokenizer's [SEP].
            ids_1Q = torch.tensor([[*prompt_ids, text.sep_token_id]])
            written = model.generate(encoder.normalise(pixels_HWC[None]), ids_1Q, **options)
            return [int(token) for token in written[0][len(prompt_ids) :]]

        return Source(
            vision_encoder=encoder,
            decoder=model.text_decoder,
            generate=generate,
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            image=outline.image,
            prompts=NO_INSTRUCTIONS,
            start_ids=(text.bos_token_id,),
            stop_ids=(text.sep_token_id,),
            context_tokens=outline.context_tokens,
            generation=published_generation(model.generation_config),
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        model = load_weights(BlipTextLMHeadModel, folder, precision, device)
        return CrossAttentionDecoder(model, manifest.context_tokens, manifest.feature_tokens)


def _check(text: Any) -> None:
    if text.bos_token_id is None or text.sep_token_id is None:
        raise ModelUnsupported(
            f"bos_token_id is {text.bos_token_id} and sep_token_id {text.sep_token_id}; both must be token ids"
        )
    if not text.is_decoder:
        raise ModelUnsupported("text_config has is_decoder False; without cross-attention it cannot see the image")
