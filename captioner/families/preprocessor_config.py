"""A model's own `preprocessor_config.json`: the pixels that the model expects, and their normalisation.

It knows the JSON of transformers' image processors. It knows no image files, no tiles and no models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from captioner.errors import ModelUnsupported
from captioner.image.spec import ImageSpec

RESAMPLE: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Defaults of CLIP's and BLIP's processors for missing keys; the functions below use the defaults of ViT's.
CLIP_DEFAULTS: dict[str, Any] = {
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def read_processor(folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return `folder/preprocessor_config.json` merged over `defaults`. Raises ModelUnsupported if it is missing."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ModelUnsupported(f"{path.name} is missing; it defines the pixels that the model expects")
    written: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return defaults | written


class Normalise(torch.nn.Module):
    """Rescaling and normalisation, as one multiplication and one addition."""

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
    """Return the pixels that `processor` produces. Raises ModelUnsupported with the setting that is not supported."""
    resample = RESAMPLE.get(processor.get("resample", 2))
    if resample is None:
        raise ModelUnsupported(f"resample is {processor['resample']}; 1, 2 and 3 are supported")
    if not processor.get("do_resize", True):
        raise ModelUnsupported("preprocessor_config.json has do_resize False; only True is supported")
    size, crop = processor.get("size"), bool(processor.get("do_center_crop"))
    if crop:
        edge = size.get("shortest_edge") if isinstance(size, dict) and len(size) == 1 else size
        if edge is not None and _sides(processor.get("crop_size")) == (edge, edge):
            return ImageSpec(edge, edge, resample, crop=True)
    elif (sides := _sides(size)) is not None:
        return ImageSpec(*sides, resample)
    raise ModelUnsupported(
        f"preprocessor_config.json has size {size!r}, do_center_crop {crop} and crop_size "
        f"{processor.get('crop_size')!r}; supported are a plain resize to height and width, and shortest_edge with a "
        "square crop of the same size"
    )


def check_side(image: ImageSpec, vision_config: Any) -> None:
    """Raise ModelUnsupported if the processor's image size differs from the vision tower's."""
    side = vision_config.image_size
    if (image.height, image.width) != (side, side):
        raise ModelUnsupported(f"image_size is {side}, but the processor produces {image.width}x{image.height} px")


def _sides(size: object) -> tuple[int, int] | None:
    """Return height and width from either notation, or None."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return size["height"], size["width"]
    return None
