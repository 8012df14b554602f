"""What transformers' own processors and models give for a model folder: prompt ids and image features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BlipForConditionalGeneration,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitForCausalLM,
    VisionEncoderDecoderModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from benchmarks.seeded import blip, florence2, idefics3, llava, paligemma, qwen_vl
from captioner.families.llava import SYSTEM

Features = Callable[[Image.Image], torch.Tensor]  # → (image tokens, width)
PromptIds = Callable[[Image.Image, str], list[int]]


def plain_prompt_ids(start_id: int) -> Callable[[Path], PromptIds]:
    """Return the ids of a model without a processor for text: a start id, then the prompt."""

    def open_folder(folder: Path) -> PromptIds:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return lambda image, text: [start_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]

    return open_folder


def blip_prompt_ids(folder: Path) -> PromptIds:
    """Return the ids of BlipProcessor as generate() changes them: BOS for [CLS], and no [SEP]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda image, text: [blip.TINY_TOKENS, *tokenizer(text)["input_ids"][1:-1]]


def llava_prompt_ids(folder: Path) -> PromptIds:
    processor = LlavaProcessor(
        SiglipImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        patch_size=7,
        vision_feature_select_strategy="full",
        image_token=llava.IMAGE,
    )

    def prompt_ids(image: Image.Image, text: str) -> list[int]:
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        rendered = processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(processor(text=[rendered], images=[image], add_special_tokens=False)["input_ids"][0])

    return prompt_ids


def idefics3_prompt_ids(model_type: idefics3.ModelType) -> Callable[[Path], PromptIds]:
    def open_folder(folder: Path) -> PromptIds:
        processor = Idefics3Processor(
            idefics3.PROCESSORS[model_type].from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            image_seq_len=4,
            chat_template=(folder / "chat_template.jinja").read_text(),
        )

        def prompt_ids(image: Image.Image, text: str) -> list[int]:
            chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
            return list(processor(text=[rendered], images=[[image]])["input_ids"][0])

        return prompt_ids

    return open_folder


def gemma3_prompt_ids(folder: Path) -> PromptIds:
    processor: Any = Gemma3Processor(
        Gemma3ImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
        image_seq_length=16,
    )

    def prompt_ids(image: Image.Image, text: str) -> list[int]:
        chat: Any = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        made = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(made["input_ids"][0])

    return prompt_ids


def paligemma_prompt_ids(folder: Path) -> PromptIds:
    image_processor: Any = SiglipImageProcessorPil.from_pretrained(folder)
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor, AutoTokenizer.from_pretrained(folder))
    return lambda image, text: list(processor(images=image, text=f"{paligemma.IMAGE}{text}")["input_ids"][0])


def qwen_vl_prompt_ids(model_type: qwen_vl.ModelType) -> Callable[[Path], PromptIds]:
    original = {"qwen3_vl": Qwen3VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[model_type]
    # Without torchvision there is no class of video processors to check for.
    kind: Any = type(original.__name__, (original,), {"check_argument_for_proper_class": lambda *_: None})

    def open_folder(folder: Path) -> PromptIds:
        processor: Any = kind(
            Qwen2VLImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
        )

        def prompt_ids(image: Image.Image, text: str) -> list[int]:
            chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
            return list(processor(text=[rendered], images=[image])["input_ids"][0])

        return prompt_ids

    return open_folder


def qwen_vl_features(folder: Path) -> Features:
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def features(image: Image.Image) -> torch.Tensor:
        made = model.get_image_features(**processor(image, return_tensors="pt"))
        levels = [level for (level,) in getattr(made, "deepstack_features", None) or []]
        return torch.cat([made.pooler_output[0], *levels], -1)

    return features


def blip_features(folder: Path) -> Features:
    model: Any = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipImageProcessorPil.from_pretrained(folder)
    return lambda image: model.vision_model(**processor(image, return_tensors="pt")).last_hidden_state[0]


def florence2_prompt_ids(folder: Path) -> PromptIds:
    """Return the ids that Florence2Processor gives the encoder after the image's, and the first two of the decoder."""
    processor = Florence2Processor(CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))

    def prompt_ids(image: Image.Image, text: str) -> list[int]:
        ids = list(processor(text=[text], images=[image])["input_ids"][0])
        read = ids[processor.num_image_tokens :]
        assert ids == [processor.image_token_id] * processor.num_image_tokens + read
        return [*read, florence2.START, florence2.FORCED]

    return prompt_ids


def florence2_features(folder: Path) -> Features:
    model: Any = Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return lambda image: model.get_image_features(**processor(image, return_tensors="pt")).pooler_output[0]


def git_features(folder: Path) -> Features:
    model: Any = GitForCausalLM.from_pretrained(folder).eval().git
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return projected_features(processor, model.image_encoder, model.visual_projection)


def vision_encoder_decoder_features(folder: Path) -> Features:
    model: Any = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    processor = ViTImageProcessorPil.from_pretrained(folder)
    return projected_features(processor, model.encoder, model.enc_to_dec_proj)


def projected_features(processor: Any, encoder: Any, projection: Any) -> Features:
    def features(image: Image.Image) -> torch.Tensor:
        hidden = encoder(**processor(image, return_tensors="pt")).last_hidden_state
        projected: torch.Tensor = projection(hidden)[0]
        return projected

    return features


def projected_tower_features(processor_kind: Any) -> Callable[[Path], Features]:
    """Return the features that a model with a vision tower and a projector gives to its language model."""

    def open_folder(folder: Path) -> Features:
        model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor = processor_kind.from_pretrained(folder)

        def features(image: Image.Image) -> torch.Tensor:
            pixels = processor(image, return_tensors="pt")["pixel_values"]
            found: torch.Tensor = model.get_image_features(pixels).pooler_output[0]
            return found

        return features

    return open_folder


gemma3_features = projected_tower_features(Gemma3ImageProcessorPil)
siglip_features = projected_tower_features(SiglipImageProcessorPil)


def idefics3_features(model_type: idefics3.ModelType) -> Callable[[Path], Features]:
    def open_folder(folder: Path) -> Features:
        model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor: Any = idefics3.PROCESSORS[model_type].from_pretrained(folder)

        def features(image: Image.Image) -> torch.Tensor:
            made = processor([[image]], return_tensors="pt")
            tiles = model.get_image_features(made["pixel_values"], made["pixel_attention_mask"]).pooler_output
            return torch.cat(list(tiles))

        return features

    return open_folder
