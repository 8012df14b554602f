"""Families `idefics3` and `smolvlm`: a large image is read as tiles and as a whole, with as many features each.

Example: HuggingFaceTB/SmolVLM-256M-Instruct. For still images, the two types differ only in name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, PreTrainedModel

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.decoders.prefix import language_model, load_decoder
from captioner.errors import ModelUnsupported
from captioner.families import chat_prompts
from captioner.families.base import Family, Outline, Source
from captioner.families.preprocessor_config import Normalise, image_spec, read_processor
from captioner.image.spec import ImageSpec

PROCESSOR_DEFAULTS = {"resample": 1}
TEXT_TOKENS = 1024  # prompt and caption, beside the image's tokens
FAKE_TOKEN, GLOBAL_TOKEN = "<fake_token_around_image>", "<global-img>"
MAX_LONGEST_PX = 4096  # above this, transformers' processor shrinks the image a second time


class Encoder(torch.nn.Module):
    """uint8 pixels of stacked tiles to features: normalisation, the vision tower on each tile, the connector."""

    position_ids: torch.Tensor

    def __init__(self, model: PreTrainedModel, processor: dict[str, Any], tile_px: int) -> None:
        super().__init__()
        tower = model.model.vision_model
        self.tile_px = tile_px
        self.normalise = Normalise(processor)
        self.patches = tower.embeddings.patch_embedding
        self.positions = tower.embeddings.position_embedding
        self.layers = tower.encoder.layers
        self.after = tower.post_layernorm
        self.connector = model.model.connector
        self.register_buffer("position_ids", position_ids(tower.embeddings, tile_px))

    def tiles(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, tiles × tile height, width, 3) uint8 → (B × tiles, 3, tile height, width) float32, normalised."""
        normalised: torch.Tensor = self.normalise(pixels_BHWC.reshape(-1, self.tile_px, self.tile_px, 3))
        return normalised

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, tiles × tile height, width, 3) uint8 → (B, tiles × tokens of a tile, text width) float32."""
        patches_NTD = self.patches(self.tiles(pixels_BHWC)).flatten(2).transpose(1, 2)
        hidden_NTD = patches_NTD + self.positions(self.position_ids)
        for layer in self.layers:
            hidden_NTD = layer(hidden_NTD, attention_mask=None)
        features_NTD: torch.Tensor = self.connector(self.after(hidden_NTD))
        return features_NTD.reshape(pixels_BHWC.shape[0], -1, features_NTD.shape[-1])


class Idefics3(Family):
    """See the module."""

    model_type = "idefics3"

    @classmethod
    def check(cls, folder: Path) -> Outline:
        """See Family.check."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        chat_prompts.refuse_quantised(config)
        image = tiled_spec(read_processor(folder, PROCESSOR_DEFAULTS))
        chat_prompts.check(folder, config, config.image_token_id)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        language_model(model, model.model.text_model)  # raises ModelUnsupported for another kind of attention
        tile_tokens = (image.height // config.vision_config.patch_size) ** 2 // config.scale_factor**2
        max_image_tokens = image.parts(*image.max_grid) * (tile_tokens + 2)
        context_tokens = min(config.text_config.max_position_embeddings, max_image_tokens + TEXT_TOKENS)
        return Outline(image, context_tokens, follows_instructions=True)

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        outline = cls.check(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        processor = read_processor(folder, PROCESSOR_DEFAULTS)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        encoder = Encoder(model, processor, outline.image.height).eval()
        prompt_template, system_template = chat_prompts.chat_prompt_templates(tokenizer, folder, config.image_token_id)
        published = model.generation_config
        stop_ids = chat_prompts.stop_ids(published, config.text_config, tokenizer)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=published.pad_token_id)

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            return chat_prompts.continuation(model, prompt_ids, encoder.tiles(pixels_HWC[None])[None], **options)

        return Source(
            vision_encoder=encoder,
            decoder=language_model(model, model.model.text_model),
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
            image_token_id=config.image_token_id,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        return load_decoder(folder, manifest, precision, device)

    @classmethod
    def image_text(cls, manifest: Manifest, image_token: str, grid_rows: int, grid_columns: int) -> str:
        """See Family.image_text: the tiles row by row, each after its own mark, then the whole image."""
        tokens = image_token * manifest.feature_tokens
        rows = [
            "".join(f"{FAKE_TOKEN}<row_{row}_col_{column}>{tokens}" for column in range(1, grid_columns + 1)) + "\n"
            for row in range(1, grid_rows + 1)
        ]
        return "".join(rows) + ("\n" if rows else "") + f"{FAKE_TOKEN}{GLOBAL_TOKEN}{tokens}{FAKE_TOKEN}"


class SmolVLM(Idefics3):
    """See the module."""

    model_type = "smolvlm"


def tiled_spec(processor: dict[str, Any]) -> ImageSpec:
    """Return the pixels of a tile and of the tiled image. Raises ModelUnsupported with the unsupported setting."""
    longest, tile = processor.get("size"), processor.get("max_image_size")
    for name, value in (("size", longest), ("max_image_size", tile)):
        if not isinstance(value, dict) or list(value) != ["longest_edge"]:
            raise ModelUnsupported(f"preprocessor_config.json has {name} {value!r}; only longest_edge is supported")
    for name in ("do_resize", "do_image_splitting"):
        if not processor.get(name, True):
            raise ModelUnsupported(f"preprocessor_config.json has {name} {processor[name]}; only True is supported")
    longest_px, tile_px = int(longest["longest_edge"]), int(tile["longest_edge"])  # type: ignore[index]
    if longest_px > MAX_LONGEST_PX or longest_px % 2:  # an odd size can give the shorter side one more tile
        raise ModelUnsupported(
            f"preprocessor_config.json has size {longest_px}; even sizes up to {MAX_LONGEST_PX} are supported"
        )
    whole = image_spec(processor | {"size": {"height": tile_px, "width": tile_px}})
    return replace(whole, longest_px=longest_px)


def position_ids(embeddings: Any, tile_px: int) -> torch.Tensor:
    """Return the position id of each patch of a full tile, (patches,), with the rounding of the model's own code."""
    seen: list[torch.Tensor] = []
    table = embeddings.position_embedding
    hook = table.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    side = tile_px // embeddings.patch_size
    try:
        with torch.no_grad():
            embeddings(torch.zeros(1, 3, tile_px, tile_px), torch.ones(1, side, side, dtype=torch.bool))
    finally:
        hook.remove()
    return seen[0]
