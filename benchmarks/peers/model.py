"""The model as all peers load it: transformers' own classes, processor and `generate()`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, VisionEncoderDecoderModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

MAX_NEW_TOKENS = 16
MAX_BATCH = 16
BATCH_WAIT_S = 0.05  # the longest time that a request waits for others of its batch

Images = Sequence[Image.Image]


def preprocessing(folder: Path) -> Callable[[Images], torch.Tensor]:
    """Return the function from RGB images to the model's input, (B, …). `folder` is a Hugging Face model."""
    if _is_embedded(folder):
        from captioner.families.concept_encoder import IMAGE_PX

        size = (IMAGE_PX, IMAGE_PX)
        return lambda images: torch.from_numpy(
            np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images])
        )
    processor = ViTImageProcessorPil.from_pretrained(folder)
    return lambda images: processor(list(images), return_tensors="pt")["pixel_values"]


class Model:
    """A captioner that writes whole batches of greedy captions."""

    def __init__(self, folder: Path) -> None:
        self.preprocess = preprocessing(folder)
        self._tokenizer: Any
        self._generate: Any
        if _is_embedded(folder):
            self._tokenizer, self._generate = _embedded(folder)
        else:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._generate = VisionEncoderDecoderModel.from_pretrained(folder).eval().generate

    def captions(self, images: Images) -> list[str]:
        """Return the captions of RGB images."""
        return self.write(self.preprocess(images))

    @torch.inference_mode()
    def write(self, pixels: torch.Tensor) -> list[str]:
        """Return the captions of what `preprocess` returned."""
        ids = self._generate(pixels, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1)
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _is_embedded(folder: Path) -> bool:
    return bool(json.loads((folder / "config.json").read_text())["model_type"] == "concept-encoder-decoder")


def _embedded(folder: Path) -> tuple[Any, Any]:
    """Return tokenizer and generate() of the embedded model, whose encoder is not one of transformers' classes."""
    from captioner.families import family

    source = family("concept-encoder-decoder").load(folder)
    prompt: list[int] = source.tokenizer(source.prompts.render(None, None), add_special_tokens=False)["input_ids"]
    start = [*source.start_ids, *prompt]
    decoder: Any = source.decoder

    def generate(pixels_BHWC: torch.Tensor, **options: Any) -> torch.Tensor:
        ids: torch.Tensor = decoder.generate(
            input_ids=torch.tensor([start] * len(pixels_BHWC)),
            encoder_hidden_states=source.vision_encoder(pixels_BHWC),
            eos_token_id=list(source.stop_ids),
            pad_token_id=source.stop_ids[0],
            **options,
        )
        return ids[:, len(start) :]

    return source.tokenizer, generate
