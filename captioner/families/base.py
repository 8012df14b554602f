"""The interface of a family: how its captioners are exported and served.

`Family.load` is for the exporter and returns torch modules; `Family.decoder` is for the server, see
captioner/decoders/base.py. It knows neither Triton nor the engine.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from captioner.artifacts.confidence import Calibration
from captioner.artifacts.manifest import (
    IMAGE_FIELD,
    PROMPT_FIELD,
    SYSTEM_FIELD,
    Card,
    Generation,
    GoldenSample,
    Manifest,
)
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.errors import ParameterInvalid
from captioner.families.regions import Locations
from captioner.image.spec import ImageSpec
from captioner.wire import EncoderPrecision

# For models that follow no instructions. A longer context is cache that no caption fills: 1024 tokens take 1.2 GB in 16
# slots of vit-gpt2.
CAPTION_CONTEXT_TOKENS = 256
NO_INSTRUCTIONS = PromptTable({"descriptive": {"any": ""}}, "descriptive", "any")


class Generate(Protocol):
    """The original model's own `generate()`: the reference for every served token."""

    def __call__(self, pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
        """Return the new token ids, without the prompt and including the stop id.

        pixels_HWC: uint8, as `image.decode.load_pixels` returns them. `options` are transformers' own, such as
        max_new_tokens and num_beams.
        """


@dataclass(frozen=True)
class Source:
    """A captioner as its authors published it, split into image encoder and text decoder."""

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
    system_template: str = ""  # that with a system turn
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
        """Return the manifest that the server reads; `feature_shape` is (image tokens, width) of one image or cell."""
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
            system_template=self.system_template,
            image_token_id=self.image_token_id,
            start_ids=self.start_ids,
            stop_ids=self.stop_ids,
            context_tokens=self.context_tokens,
            generation=self.generation,
            calibration=self.calibration,
            golden_sample=golden_sample,
            files=files,
        )


@dataclass(frozen=True)
class Outline:
    """What the files beside a model's weights say about its captioner."""

    image: ImageSpec
    context_tokens: int
    follows_instructions: bool = False


class Family(ABC):
    """One kind of captioner; `model_type` is the Hugging Face name in its config.json."""

    model_type: ClassVar[str]
    encodes_prompt: ClassVar[bool] = False  # an encoder reads the prompt, and the decoder only `start_ids`
    follows_instructions: ClassVar[bool] = True  # answers any prompt, if a caption does not continue its prompt
    region_styles: ClassVar[dict[str, int]] = {}  # styles that name places → location tokens of one, see regions.py

    @classmethod
    def check(cls, folder: Path) -> Outline | None:
        """Return what the files beside the weights say; None for a family that reads them only in `load`.

        Raises ModelUnsupported with the reason, as `load` does, which begins with it.
        """
        return None

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Source:
        """Load a model folder (config.json, safetensors, tokenizer). Raises ModelUnsupported with the reason."""

    @classmethod
    @abstractmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """Load the published decoder in `folder/decoder`, without slots."""

    @classmethod
    def locations(cls, tokenizer: Tokenizer) -> Locations | None:
        """Return the location tokens of a model that names places. Raises ArtefactBroken if some are missing."""
        return None

    @classmethod
    def image_text(cls, manifest: Manifest, image_token: str, grid_rows: int, grid_columns: int) -> str:
        """Return the text of the image in the prompt template: one `image_token` per feature."""
        return image_token * math.prod(manifest.feature_shape(grid_rows, grid_columns)[:-1])

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
        """Return all ids that the model reads before the caption; the decoder's own come last.

        `system`: the text of the system turn, for a manifest with a `system_template`. Raises ParameterInvalid for a
        text that contains the image token.
        """
        template = manifest.prompt_template if system is None else manifest.system_template
        values = {PROMPT_FIELD: prompt, SYSTEM_FIELD: system or ""}
        if manifest.image_token_id is not None:
            token = tokenizer.id_to_token(manifest.image_token_id) or ""
            if any(token in text for text in values.values()):
                raise ParameterInvalid(f"the prompt contains {token!r}, which is reserved for the image")
            values[IMAGE_FIELD] = cls.image_text(manifest, token, grid_rows, grid_columns)
        fields = re.compile("|".join(map(re.escape, values)))  # in one pass: a text may look like a field
        text = fields.sub(lambda field: values[field[0]], template)
        text_ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [*text_ids, *manifest.start_ids] if cls.encodes_prompt else [*manifest.start_ids, *text_ids]
