"""A model's own `preprocessor_config.json`: which pixels it wants, and how they become the numbers it was trained on.

It knows the JSON that transformers' image processors write. Files, tiles and models are not its business.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from captioner.errors import ModelUnsupported
from captioner.image.spec import ImageSpec

RESAMPLE: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
# What CLIP's and BLIP's processors do where the JSON is silent; the functions below are silent as ViT's.
CLIP_DEFAULTS: dict[str, Any] = {
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def read_processor(folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """`folder/preprocessor_config.json` over `defaults`; ModelUnsupported where there is no such file."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ModelUnsupported(f"{path.name} is missing; without it nobody knows what pixels the model wants")
    written: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return defaults | written


class Normalise(torch.nn.Module):
    """Rescaling and normalisation as one multiplication and one addition."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, processor: dict[str, Any]) -> None:
        super().__init__()
        scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
        normalise = processor.get("do_normalize", True)
        mean = torch.tensor(processor.get("image_mean", [0.5] * 3) if normalise else [0.0] * 3)
        std = torch.tensor(processor.get("image_std", [0.5] * 3) if normalise else [1.0] * 3)
        self.register_buffer("factor", (scale / std).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, 3, height, width) float32."""
        return pixels_BHWC.permute(0, 3, 1, 2).float() * self.factor + self.shift


def image_spec(processor: dict[str, Any]) -> ImageSpec:
    """The pixels that `processor` makes; ModelUnsupported names the setting that is not served."""
    resample = RESAMPLE.get(processor.get("resample", 2))
    if resample is None:
        raise ModelUnsupported(f"resample {processor['resample']} is none of Pillow's 1, 2 and 3")
    if not processor.get("do_resize", True):
        raise ModelUnsupported("preprocessor_config.json asks for do_resize False; every image gets the model's size")
    size, crop = processor.get("size"), bool(processor.get("do_center_crop"))
    if crop:
        edge = size.get("shortest_edge") if isinstance(size, dict) and len(size) == 1 else size
        cut = _sides(processor.get("crop_size"))
        if edge is not None and cut == (edge, edge):
            return ImageSpec(edge, edge, resample, crop=True)
    elif (sides := _sides(size)) is not None:
        return ImageSpec(*sides, resample)
    raise ModelUnsupported(
        f"preprocessor_config.json asks for size {size!r}, do_center_crop {crop} and crop_size "
        f"{processor.get('crop_size')!r}; served are a straight resize to height and width, and shortest_edge with a "
        "square crop of the same size"
    )


def check_side(image: ImageSpec, vision_config: Any) -> None:
    """Raises ModelUnsupported where the processor makes other pixels than the vision tower was built for."""
    side = vision_config.image_size
    if (image.height, image.width) != (side, side):
        raise ModelUnsupported(f"image_size is {side}, and the processor makes {image.width}x{image.height} px")


def _sides(size: object) -> tuple[int, int] | None:
    """Height and width, in either of the ways they are written."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return size["height"], size["width"]
    return None
