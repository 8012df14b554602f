"""Family `florence2`: a DaViT image encoder and BART, which was trained on a few tasks with a fixed sentence each.

Examples: florence-community/Florence-2-base and -large. BART's encoder reads the image and the task's sentence. The
tasks are the styles of its captioners; some name places in the image by location tokens.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BartForConditionalGeneration,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from captioner.artifacts.manifest import PROMPT_FIELD, Manifest
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.base import Decoder
from captioner.decoders.encoder_decoder import EncoderDecoder
from captioner.decoders.load_weights import Precision, load_weights
from captioner.errors import ModelUnsupported, PromptTooLong
from captioner.families.base import Family, Source
from captioner.families.generation_config import published_generation
from captioner.families.preprocessor_config import CLIP_DEFAULTS, Normalise, image_spec, read_processor
from captioner.families.regions import BOX, QUADRILATERAL, Locations

PROCESSOR_DEFAULTS = CLIP_DEFAULTS | {"do_center_crop": True}
PROMPT_TOKENS = 128  # that the encoder reads; the tasks' sentences have about a dozen
MAX_TOKENS = 512  # a region takes about eight
TASKS = {  # style → length → the processor's name of the task
    "descriptive": {"short": "<CAPTION>", "medium": "<DETAILED_CAPTION>", "long": "<MORE_DETAILED_CAPTION>"},
    "regions": {"any": "<DENSE_REGION_CAPTION>"},
    "objects": {"any": "<OD>"},
    "ocr": {"any": "<OCR_WITH_REGION>"},
}


class Encoder(torch.nn.Module):
    """uint8 pixels to features: normalisation, DaViT, the projector."""

    def __init__(self, model: Florence2ForConditionalGeneration, processor: dict[str, Any]) -> None:
        super().__init__()
        self.normalise = Normalise(processor)
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, image tokens, text width) float32."""
        features: torch.Tensor = self.projector(self.tower(self.normalise(pixels_BHWC)).last_hidden_state)
        return features


class Florence2(Family):
    """See the module."""

    model_type = "florence2"
    encodes_prompt = True
    follows_instructions = False  # it knows the sentences of its tasks
    region_styles: ClassVar[dict[str, int]] = {"regions": BOX, "objects": BOX, "ocr": QUADRILATERAL}

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        settings = read_processor(folder, PROCESSOR_DEFAULTS)
        image = image_spec(settings)
        _check_text(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        text: Any = config.text_config
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        image_tokens, prompts = _processor(folder, tokenizer)
        if text.max_position_embeddings < image_tokens + PROMPT_TOKENS:
            raise ModelUnsupported(
                f"max_position_embeddings is {text.max_position_embeddings}; the encoder reads {image_tokens} image "
                f"tokens and up to {PROMPT_TOKENS} of a prompt"
            )
        model = Florence2ForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        encoder = Encoder(model, settings).eval()
        published = deepcopy(model.generation_config)
        start_ids, stop_ids = _start_ids(published, text), _stop_ids(published, text)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(
            decoder_start_token_id=start_ids[0], eos_token_id=list(stop_ids), pad_token_id=text.pad_token_id
        )
        published.forced_bos_token_id = None  # `start_ids` have it

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            read, start = prompt_ids[: -len(start_ids)], prompt_ids[-len(start_ids) :]
            ids_1N = torch.tensor([[config.image_token_id] * image_tokens + read])
            run: Any = model.generate
            written_1N = run(
                input_ids=ids_1N,
                attention_mask=torch.ones_like(ids_1N),
                pixel_values=encoder.normalise(pixels_HWC[None]),
                decoder_input_ids=torch.tensor([start]),
                **options,
            )
            return [int(token) for token in written_1N[0, len(start) :]]

        return Source(
            vision_encoder=encoder,
            decoder=_text_model(model),
            generate=generate,
            tokenizer=tokenizer,
            image=image,
            prompts=prompts,
            start_ids=start_ids,
            stop_ids=stop_ids,
            context_tokens=min(text.max_position_embeddings, PROMPT_TOKENS + MAX_TOKENS),
            generation=published_generation(published, MAX_TOKENS),
            prompt_template=f"{tokenizer.bos_token}{PROMPT_FIELD}{tokenizer.eos_token}",
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        model = load_weights(BartForConditionalGeneration, folder, precision, device)
        return EncoderDecoder(
            model, manifest.context_tokens, manifest.feature_tokens, PROMPT_TOKENS, len(manifest.start_ids)
        )

    @classmethod
    def locations(cls, tokenizer: Tokenizer) -> Locations:
        """See Family.locations."""
        return Locations(tokenizer, "<loc_{}>", 1000)

    @classmethod
    def prompt_ids(
        cls,
        tokenizer: Tokenizer,
        manifest: Manifest,
        prompt: str,
        grid_rows: int = 0,
        grid_columns: int = 0,
        system: str | None = None,
    ) -> list[int]:
        """See Family.prompt_ids. Raises PromptTooLong for a prompt above PROMPT_TOKENS."""
        ids = super().prompt_ids(tokenizer, manifest, prompt, grid_rows, grid_columns, system)
        if (count := len(ids) - len(manifest.start_ids)) > PROMPT_TOKENS:
            raise PromptTooLong(f"the prompt has {count} tokens; the limit is {PROMPT_TOKENS}")
        return ids


def _check_text(folder: Path) -> None:
    """Raise ModelUnsupported for a checkpoint with code of its own, whose parts have other names and sizes."""
    written = json.loads((folder / "config.json").read_text("utf-8")).get("text_config") or {}
    if (model_type := written.get("model_type", "bart")) != "bart":
        raise ModelUnsupported(
            f"text_config's model_type is {model_type!r}; only 'bart' is supported, as in "
            "florence-community/Florence-2-base"
        )


def _processor(folder: Path, tokenizer: Any) -> tuple[int, PromptTable]:
    """Return what transformers' own processor knows: the number of image tokens, and the sentence of each task."""
    images = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    for owner, name in ((images, "image_seq_length"), (tokenizer, "image_token")):
        if getattr(owner, name, None) is None:
            raise ModelUnsupported(f"{name} is None; transformers' processor of this model needs it")
    processor = Florence2Processor(images, tokenizer)
    sentences = processor.task_prompts_without_inputs
    styles = {style: {length: sentences[task] for length, task in lengths.items()} for style, lengths in TASKS.items()}
    return processor.num_image_tokens, PromptTable(styles, "descriptive", "medium")


def _start_ids(published: GenerationConfig, text: Any) -> tuple[int, ...]:
    """Return the ids that every caption starts with: the decoder's start id, and the id that is forced after it."""
    start = published.decoder_start_token_id
    start = text.decoder_start_token_id if start is None else start
    if start is None:
        raise ModelUnsupported("decoder_start_token_id is None; it must be a token id")
    forced = published.forced_bos_token_id
    return (start,) if forced is None else (start, forced)


def _stop_ids(published: GenerationConfig, text: Any) -> tuple[int, ...]:
    stop = text.eos_token_id if published.eos_token_id is None else published.eos_token_id
    if stop is None:
        raise ModelUnsupported("eos_token_id is None; captions need a stop id")
    return tuple(stop) if isinstance(stop, list) else (stop,)


def _text_model(model: Florence2ForConditionalGeneration) -> BartForConditionalGeneration:
    """Return BART and the head of `model` as a model of its own that shares their weights."""
    config: Any = deepcopy(model.config.text_config)
    config.tie_word_embeddings = model.lm_head.weight is model.model.language_model.shared.weight
    with torch.device("meta"):
        bart = BartForConditionalGeneration(config)
    bart.model, bart.lm_head = model.model.language_model, model.lm_head
    bart.final_logits_bias = torch.nn.Buffer(torch.zeros(1, config.vocab_size))
    return bart.eval()  # type: ignore[no-any-return]
