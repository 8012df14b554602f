"""Family `gemma3`: a chat model whose image tokens attend to each other both ways. Example: google/gemma-3-4b-it.

Most of its layers attend to a sliding window only. The context is not longer than the window, so in every layer the
window is the whole context.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig

from captioner.artifacts.manifest import IMAGE_FIELD, Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.decoders.prefix import PrefixDecoder, language_model, load_decoder
from captioner.errors import ModelUnsupported
from captioner.families import chat_prompts
from captioner.families.base import Family, Source
from captioner.families.preprocessor_config import check_side, image_spec, read_processor
from captioner.families.vision_encoder import VisionEncoder

CONTEXT_TOKENS = 1024  # 256 for the image, a prompt and a long caption; the published sliding window
PROCESSOR_DEFAULTS = {"size": {"height": 224, "width": 224}}


class Gemma3(Family):
    """See the module."""

    model_type = "gemma3"

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        config: Any = Gemma3Config.from_pretrained(folder, local_files_only=True)
        text = config.text_config
        chat_prompts.refuse_quantised(config)
        if text.final_logit_softcapping is not None:  # the whole model ignores it, the language model alone does not
            raise ModelUnsupported(f"final_logit_softcapping is {text.final_logit_softcapping}; only null is supported")
        processor = read_processor(folder, PROCESSOR_DEFAULTS)
        if processor.get("do_pan_and_scan"):
            raise ModelUnsupported("preprocessor_config.json has do_pan_and_scan True; only False is supported")
        image = image_spec(processor)
        check_side(image, config.vision_config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = (config.boi_token_id, config.image_token_id, config.eoi_token_id)
        start, soft, end = map(tokenizer.convert_ids_to_tokens, ids)
        if not (start and soft and end):
            raise ModelUnsupported(f"the tokens of an image are {ids}; the tokenizer does not have all three")
        model = Gemma3ForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        encoder = VisionEncoder(processor, model.model.vision_tower, model.model.multi_modal_projector).eval()
        # The chat template writes only the token before an image; the processor writes the image around it.
        prompt_template, system_template = (
            template.replace(IMAGE_FIELD, f"\n\n{start}{IMAGE_FIELD}{end}\n\n")
            for template in chat_prompts.chat_prompt_templates(tokenizer, folder, config.boi_token_id)
        )
        published = model.generation_config
        stop_ids = chat_prompts.stop_ids(published, text, tokenizer)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=published.pad_token_id)

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            is_image_1N = torch.tensor([[int(token == config.image_token_id) for token in prompt_ids]])
            pixels = encoder.normalise(pixels_HWC[None])
            return chat_prompts.continuation(model, prompt_ids, pixels, token_type_ids=is_image_1N, **options)

        context_tokens = min(text.max_position_embeddings, text.sliding_window or CONTEXT_TOKENS, CONTEXT_TOKENS)
        return Source(
            vision_encoder=encoder,
            decoder=language_model(model, model.model.language_model, context_tokens),
            generate=generate,
            tokenizer=tokenizer,
            image=image,
            prompts=chat_prompts.PROMPTS,
            start_ids=chat_prompts.start_ids(tokenizer, prompt_template),
            stop_ids=stop_ids,
            context_tokens=context_tokens,
            generation=chat_prompts.generation(published),
            prompt_template=prompt_template,
            system_template=system_template,
            image_token_id=config.image_token_id,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        return load_decoder(folder, manifest, precision, device, partial(PrefixDecoder, bidirectional="image"))
