"""Common parts of the families `qwen3_vl` and `qwen2_5_vl`: images of dynamic size, M-RoPE, a Qwen language model.

An image is resized to whole cells of merge × merge patches, and each cell becomes one image token.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.decoders.mrope import MRopeDecoder
from captioner.decoders.prefix import language_model, load_decoder
from captioner.errors import ModelUnsupported
from captioner.families import chat_prompts
from captioner.families.base import Family, Source
from captioner.families.preprocessor_config import CLIP_DEFAULTS, Normalise, image_spec, read_processor
from captioner.image.spec import ImageSpec

MAX_IMAGE_TOKENS = 1280  # the processor's own default: 1.3 megapixels in cells of 32 px, 1.0 in cells of 28 px
TEXT_TOKENS = 1024  # prompt and caption, beside the image's tokens
PROCESSOR_DEFAULTS = CLIP_DEFAULTS | {
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of a tower, (windows, patches, head size)


class PatchEmbedding(torch.nn.Module):
    """uint8 pixels to the embeddings of patches, normalised."""

    def __init__(self, tower: Any, processor: dict[str, Any]) -> None:
        super().__init__()
        self.normalise = Normalise(processor)
        video: torch.nn.Conv3d = tower.patch_embed.proj
        side_px = int(video.kernel_size[-1])
        # A still image is a video of equal frames, so the kernel's sum over the frames does the same work once.
        self.projection = torch.nn.Conv2d(3, video.out_channels, side_px, side_px, bias=video.bias is not None)
        self.projection.weight = torch.nn.Parameter(video.weight.detach().sum(2))
        self.projection.bias = video.bias

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, rows of patches, columns of patches, tower width) float32."""
        patches_BDHW: torch.Tensor = self.projection(self.normalise(pixels_BHWC))
        return patches_BDHW.permute(0, 2, 3, 1)


def patch_positions(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return the row and the column of each patch, (1, rows, columns, 2)."""
    shape = rows, columns
    rows_HW = torch.arange(rows, device=device)[:, None].expand(shape)
    columns_HW = torch.arange(columns, device=device)[None].expand(shape)
    return torch.stack([rows_HW, columns_HW], -1)[None]


def blocks(grid_BRCD: torch.Tensor, side: int) -> torch.Tensor:
    """Group a grid into square blocks: (B, rows, columns, D) → (B, rows / side, columns / side, side², D)."""
    images, rows, columns, width = grid_BRCD.shape
    split = grid_BRCD.reshape(images, rows // side, side, columns // side, side, width)
    return split.transpose(2, 3).reshape(images, rows // side, columns // side, side**2, width)


def self_attention(
    module: Any, heads: int, hidden_BWPD: torch.Tensor, rotary: Rotary, visible_WP: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the output of a tower's attention between the P patches of each window, (B, windows, P, D).

    rotary: cosines and sines, (windows, P, head size). `visible_WP` is False for patches that do not exist.
    """
    images, windows, patches, _ = hidden_BWPD.shape
    size = module.head_dim
    projected = module.qkv(hidden_BWPD).reshape(images, windows, patches, 3, heads, size)
    query, key, value = projected.unbind(3)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    # The windows stand beside the heads: the exporter takes attention in four dimensions only.
    query, key, value = (
        part.transpose(2, 3).reshape(images, windows * heads, patches, size) for part in (query, key, value)
    )
    mask = None if visible_WP is None else visible_WP[:, None, None].expand(-1, heads, 1, -1).flatten(0, 1)
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    attended = attended.reshape(images, windows, heads, patches, size).transpose(2, 3)
    output: torch.Tensor = module.proj(attended.flatten(3))
    return output


class QwenVL(Family):
    """A family of this kind; see the module."""

    text_type: ClassVar[str]  # model type of the language model without M-RoPE and DeepStack
    encoder: ClassVar[type[Any]]  # a module, made from the tower and the processor
    rotary: ClassVar[type[Any]]  # a module, made from a config; it embeds positions (3, B, queries)

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        chat_prompts.refuse_quantised(config)
        processor = read_processor(folder, PROCESSOR_DEFAULTS)
        image = dynamic_spec(processor, config.vision_config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        prompt_template, system_template = chat_prompts.chat_prompt_templates(tokenizer, folder, config.image_token_id)
        published = model.generation_config
        stop_ids = chat_prompts.stop_ids(published, config.text_config, tokenizer)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=published.pad_token_id)
        patchify = Qwen2VLImageProcessorPil(**processor | {"do_resize": False})

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            patches = patchify(pixels_HWC.numpy(), return_tensors="pt")
            options["image_grid_thw"] = patches["image_grid_thw"]
            options["mm_token_type_ids"] = (torch.tensor([prompt_ids]) == config.image_token_id).int()
            return chat_prompts.continuation(model, prompt_ids, patches["pixel_values"], **options)

        return Source(
            vision_encoder=cls.encoder(model.model.visual, processor).eval(),
            decoder=language_model(
                model, model.model.language_model, config=cls.text_config(model.model.language_model)
            ),
            generate=generate,
            tokenizer=tokenizer,
            image=image,
            prompts=chat_prompts.PROMPTS,
            start_ids=chat_prompts.start_ids(tokenizer, prompt_template),
            stop_ids=stop_ids,
            context_tokens=min(config.text_config.max_position_embeddings, image.parts(*image.max_grid) + TEXT_TOKENS),
            generation=chat_prompts.generation(published),
            prompt_template=prompt_template,
            system_template=system_template,
            image_token_id=config.image_token_id,
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        kind = partial(MRopeDecoder, feature_width=manifest.feature_width, rotary=cls.text_rotary)
        return load_decoder(folder, manifest, precision, device, kind)

    @classmethod
    def text_config(cls, text_model: Any) -> PreTrainedConfig:
        """Return the config of the causal language model with the same layers.

        Its `mrope_section` stands alone: transformers warns of it among the `rope_parameters` of this model type.
        """
        values = text_model.config.to_dict() | {"mrope_section": list(text_model.rotary_emb.mrope_section)}
        del values["model_type"]
        for name in ("mrope_section", "mrope_interleaved"):
            values["rope_parameters"].pop(name, None)
        made: PreTrainedConfig = AutoConfig.for_model(cls.text_type, **values)
        return made

    @classmethod
    def text_rotary(cls, config: Any) -> torch.nn.Module:
        """Return the rotary embedding for the config that `text_config` made."""
        config = copy.deepcopy(config)
        config.rope_parameters["mrope_section"] = config.mrope_section
        made: torch.nn.Module = cls.rotary(config)
        return made


def dynamic_spec(processor: dict[str, Any], vision_config: Any) -> ImageSpec:
    """Return the pixels of a token and the limits of an image's. Raises ModelUnsupported with the unsupported value.

    An image has at most MAX_IMAGE_TOKENS, also if the processor would permit more.
    """
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        if processor[ours] != getattr(vision_config, theirs):
            raise ModelUnsupported(
                f"preprocessor_config.json has {ours} {processor[ours]!r}; vision_config has "
                f"{getattr(vision_config, theirs)!r}"
            )
    size, limits = processor["size"], {}
    size = size if isinstance(size, dict) else {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        limits[name] = size.get(edge) if processor.get(name) is None else processor[name]
    least, most = limits["min_pixels"], limits["max_pixels"]
    cell_px = int(processor["patch_size"] * processor["merge_size"])
    if not (isinstance(least, int) and isinstance(most, int) and cell_px**2 <= most and 0 <= least <= most):
        raise ModelUnsupported(
            f"preprocessor_config.json has min_pixels {least!r} and max_pixels {most!r}; supported are numbers in "
            f"this order, the second at least {cell_px**2}"
        )
    most = min(most, MAX_IMAGE_TOKENS * cell_px**2)
    cell = image_spec(processor | {"size": cell_px, "do_center_crop": False})
    return ImageSpec(cell.height, cell.width, cell.resample, min_pixels=min(least, most), max_pixels=most)
