"""Family `paligemma`: a prefix language model, in which image and prompt attend to each other both ways.

Examples: google/paligemma2-3b-mix-224 (Gemma 2) and google/paligemma-3b-mix-448 (Gemma). A prompt is a task and a
language, such as "caption en". Gemma 2 attends to a sliding window in every other layer; a model is served if its
window covers image, prompt and caption. transformers counts positions from 1; rotary embeddings depend on their
differences only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from captioner.artifacts.manifest import IMAGE_FIELD, PROMPT_FIELD, Manifest
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.decoders.prefix import PrefixDecoder, language_model, load_decoder
from captioner.errors import ModelUnsupported
from captioner.families import chat_prompts
from captioner.families.base import Family, Source
from captioner.families.preprocessor_config import check_side, image_spec, read_processor
from captioner.families.vision_encoder import VisionEncoder

TEXT_TOKENS = 256  # prompt and caption, beside the image's tokens
PROCESSOR_DEFAULTS = {"resample": 3, "size": {"height": 224, "width": 224}}
TEXT_MODELS = ("gemma", "gemma2")
# The languages beside English in which the authors trained captions.
LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it", "ja",
    "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
PROMPTS = PromptTable(
    styles={
        "descriptive": {"short": "caption en", "long": "describe en"},
        "alt-text": {"short": "cap en"},  # like the alt texts of the web
        **{f"descriptive-{code}": {"short": f"caption {code}", "long": f"describe {code}"} for code in LANGUAGES},
    },
    default_style="descriptive",
    default_length="short",
)


class PaliGemma(Family):
    """See the module."""

    model_type = "paligemma"

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        config: Any = PaliGemmaConfig.from_pretrained(folder, local_files_only=True)
        text = config.text_config
        chat_prompts.refuse_quantised(config)
        if text.model_type not in TEXT_MODELS:
            raise ModelUnsupported(
                f"text_config's model_type is {text.model_type!r}; {' and '.join(TEXT_MODELS)} are supported"
            )
        processor = read_processor(folder, PROCESSOR_DEFAULTS)
        image = image_spec(processor)
        check_side(image, config.vision_config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.convert_ids_to_tokens(config.image_token_id):
            raise ModelUnsupported(f"image_token_index is {config.image_token_id}, which the tokenizer does not have")
        model = PaliGemmaForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        encoder = VisionEncoder(processor, model.model.vision_tower, model.model.multi_modal_projector).eval()
        context_tokens = min(text.max_position_embeddings, text.num_image_tokens + TEXT_TOKENS)
        decoder = language_model(model, model.model.language_model, context_tokens)
        published = model.generation_config
        stop_ids = chat_prompts.stop_ids(published, text, tokenizer)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=published.pad_token_id)

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            is_caption_1N = torch.zeros(1, len(prompt_ids), dtype=torch.long)
            pixels = encoder.normalise(pixels_HWC[None])
            return chat_prompts.continuation(model, prompt_ids, pixels, token_type_ids=is_caption_1N, **options)

        return Source(
            vision_encoder=encoder,
            decoder=decoder,
            generate=generate,
            tokenizer=tokenizer,
            image=image,
            prompts=PROMPTS,
            start_ids=(),
            stop_ids=stop_ids,
            context_tokens=context_tokens,
            generation=chat_prompts.generation(published),
            prompt_template=f"{IMAGE_FIELD}{tokenizer.bos_token}{PROMPT_FIELD}\n",
            image_token_id=config.image_token_id,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        return load_decoder(folder, manifest, precision, device, partial(PrefixDecoder, bidirectional="prompt"))
