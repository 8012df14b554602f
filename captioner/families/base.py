"""What a family of captioners must say of itself, to be exported and to be served.

`Family.load` is the exporter's side and holds torch modules; `Family.decoder` is the server's side, see `decoder.py`.
Neither knows Triton, and neither knows the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from captioner.artifacts.manifest import (
    IMAGE_FIELD,
    PROMPT_FIELD,
    Calibration,
    Card,
    Generation,
    GoldenSample,
    Manifest,
)
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.errors import ParameterInvalid
from captioner.image.spec import ImageSpec
from captioner.wire import EncoderPrecision


class Generate(Protocol):
    """The original model's own `generate()`: what every served token is held against."""

    def __call__(self, pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
        """The new token ids (without the prompt, up to and with the one that ended it) for uint8 pixels as
        `image.load_pixels` makes them. `options` are transformers' own, such as max_new_tokens and num_beams."""


@dataclass(frozen=True)
class Source:
    """A captioner as its authors published it, taken apart at the seam between image and text."""

    vision_encoder: torch.nn.Module  # uint8 (B, height, width, 3) → float32 (B, image tokens, feature width)
    decoder: PreTrainedModel  # what `save_pretrained` writes for the server
    generate: Generate
    tokenizer: PreTrainedTokenizerBase
    image: ImageSpec
    prompts: PromptTable
    start_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    context_tokens: int
    generation: Generation
    prompt_template: str = PROMPT_FIELD  # the text around a prompt, see Manifest
    image_token_id: int | None = None
    calibration: Calibration | None = None

    def manifest(
        self,
        *,
        family: str,
        model: str,
        revision: str,
        feature_shape: tuple[int, int],
        files: dict[str, str],
        card: Card = Card(),  # noqa: B008 - frozen
        precision: EncoderPrecision = "fp32",
        golden_sample: GoldenSample | None = None,
    ) -> Manifest:
        """What the server reads of it; `feature_shape` is (image tokens, width) of one image or tile."""
        return Manifest(
            family=family,
            model=model,
            revision=revision,
            card=card,
            precision=precision,
            image=self.image,
            feature_tokens=feature_shape[0],
            feature_width=feature_shape[1],
            prompts=self.prompts,
            prompt_template=self.prompt_template,
            image_token_id=self.image_token_id,
            start_ids=self.start_ids,
            stop_ids=self.stop_ids,
            context_tokens=self.context_tokens,
            generation=self.generation,
            calibration=self.calibration,
            golden_sample=golden_sample,
            files=files,
        )


class Family(ABC):
    """One kind of captioner; `model_type` is the Hugging Face name in its config.json."""

    model_type: ClassVar[str]

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Source:
        """Reads a model folder (config.json, safetensors, tokenizer); ModelUnsupported names what does not fit."""

    @classmethod
    @abstractmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """The published decoder in `folder/decoder`, without slots yet."""

    @classmethod
    def image_text(cls, manifest: Manifest, image_token: str, tile_rows: int, tile_columns: int) -> str:
        """What stands for the image in the prompt_template: one `image_token` for each of its features."""
        return image_token * manifest.feature_tokens

    @classmethod
    def prompt_ids(
        cls, tokenizer: Tokenizer, manifest: Manifest, prompt: str, tile_rows: int = 0, tile_columns: int = 0
    ) -> list[int]:
        """Everything the model is given before the caption, as ids.

        Raises ParameterInvalid for a prompt that holds the token which stands for the image.
        """
        prompt_template = manifest.prompt_template
        if manifest.image_token_id is not None:
            token = tokenizer.id_to_token(manifest.image_token_id) or ""
            if token in prompt:
                raise ParameterInvalid(f"the prompt holds {token!r}, which stands for the image")
            prompt_template = prompt_template.replace(
                IMAGE_FIELD, cls.image_text(manifest, token, tile_rows, tile_columns)
            )
        text = prompt_template.replace(PROMPT_FIELD, prompt)
        return [*manifest.start_ids, *tokenizer.encode(text, add_special_tokens=False).ids]
