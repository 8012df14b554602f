"""Family `llava`: a vision transformer, two linear layers and a chat model; one feature per image patch.

Examples: fancyfeast/llama-joycaption-beta-one-hf-llava (SigLIP, Llama 3.1) and llava-hf/llava-1.5-7b-hf (CLIP, Vicuna).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlavaForConditionalGeneration

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.decoders.prefix import language_model, load_decoder
from captioner.errors import ModelUnsupported
from captioner.families import chat_prompts
from captioner.families.base import Family, Outline, Source
from captioner.families.preprocessor_config import CLIP_DEFAULTS, Normalise, image_spec, read_processor

CONTEXT_TOKENS = 2048  # 729 for the image, a prompt and a long caption; in bf16, 256 MiB of cache for an 8B Llama
SYSTEM = "You write captions for images, accurate and to the point."
TOWERS = ("siglip_vision_model", "clip_vision_model")


class Encoder(torch.nn.Module):
    """uint8 pixels to features: normalisation, the vision tower up to the selected layer, the projector."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: dict[str, Any]) -> None:
        super().__init__()
        config, tower = model.config, model.model.vision_tower
        self.normalise = Normalise(processor)
        self.embeddings = tower.embeddings
        self.before = getattr(tower, "pre_layrnorm", torch.nn.Identity())  # of CLIP; transformers' own spelling
        self.layers = tower.encoder.layers[: layers_needed(config)]
        self.projector = model.model.multi_modal_projector
        self.first_patch = 1 if config.vision_feature_select_strategy == "default" else 0

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, patches, text width) float32."""
        hidden_BTD = self.before(self.embeddings(self.normalise(pixels_BHWC)))
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, attention_mask=None)
        features: torch.Tensor = self.projector(hidden_BTD[:, self.first_patch :])
        return features


class Llava(Family):
    """See the module."""

    model_type = "llava"

    @classmethod
    def check(cls, folder: Path) -> Outline:
        """See Family.check."""
        config = read_config(folder)
        image = image_spec(preprocessing(folder))
        chat_prompts.check(folder, config, config.image_token_index)
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
        language_model(model, model.model.language_model)  # raises ModelUnsupported for another kind of attention
        context_tokens = min(config.text_config.max_position_embeddings, CONTEXT_TOKENS)
        return Outline(image, context_tokens, follows_instructions=True)

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        outline = cls.check(folder)
        config = read_config(folder)
        processor = preprocessing(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        encoder = Encoder(model, processor).eval()
        prompt_template, system_template = chat_prompts.chat_prompt_templates(
            tokenizer, folder, config.image_token_index, SYSTEM
        )
        published = model.generation_config
        stop_ids = chat_prompts.stop_ids(published, config.text_config, tokenizer)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=published.pad_token_id)

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            return chat_prompts.continuation(model, prompt_ids, encoder.normalise(pixels_HWC[None]), **options)

        return Source(
            vision_encoder=encoder,
            decoder=language_model(model, model.model.language_model),
            generate=generate,
            tokenizer=tokenizer,
            image=outline.image,
            prompts=chat_prompts.PROMPTS,
            start_ids=chat_prompts.start_ids(tokenizer, prompt_template),
            stop_ids=stop_ids,
            context_tokens=outline.context_tokens,
            generation=chat_prompts.generation(published),
            prompt_template=prompt_template,
            system_template=system_template,
            image_token_id=config.image_token_index,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        return load_decoder(folder, manifest, precision, device)


def layers_needed(config: Any) -> int:
    """Return the number of tower layers below the selected hidden state, whose index may be negative."""
    layers: int = config.vision_config.num_hidden_layers
    selected = config.vision_feature_layer
    needed = selected % (layers + 1) if isinstance(selected, int) and abs(selected) <= layers else 0
    if needed == 0:
        raise ModelUnsupported(f"vision_feature_layer is {selected!r}; it must be one of the tower's {layers} layers")
    return needed


def read_config(folder: Path) -> Any:
    """Return the model's config. Raises ModelUnsupported with the first unsupported value."""
    written = json.loads((folder / "config.json").read_text("utf-8"))
    strategy = written.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):  # transformers also refuses it, but with another type of error
        raise ModelUnsupported(f"vision_feature_select_strategy is {strategy!r}; 'default' and 'full' are supported")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    chat_prompts.refuse_quantised(config)
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        raise ModelUnsupported(f"vision_config's model_type is {tower!r}; {' and '.join(TOWERS)} are supported")
    layers_needed(config)
    return config


def preprocessing(folder: Path) -> dict[str, Any]:
    """Return the processor's JSON merged over its class's defaults. Raises ModelUnsupported for padding to a square."""
    processor = read_processor(folder, {"resample": 3})
    if str(processor.get("image_processor_type", "")).startswith("CLIP"):
        processor = CLIP_DEFAULTS | {"do_center_crop": True} | processor
    if processor.get("do_pad"):
        raise ModelUnsupported("preprocessor_config.json has do_pad True; only False is supported")
    return processor
