"""preprocessor_config.json gives the same pixels and normalisation as transformers' own processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.images import png
from captioner.errors import ModelUnsupported
from captioner.families.preprocessor_config import CLIP_DEFAULTS, Normalise, check_side, image_spec
from captioner.image.decode import MAX_ASPECT_RATIO, load_pixels
from captioner.image.spec import ImageSpec

CROP: dict[str, Any] = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(90, 40), (31, 77), (8, 300), (33, 32), (32, 32)])
@pytest.mark.parametrize("side_px", [32, 45])
def test_a_center_crop_equals_clips_processor_to_the_pixel(size: tuple[int, int], side_px: int) -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side_px},
        crop_size={"height": side_px, "width": side_px},
        do_rescale=False,
        do_normalize=False,
    )
    theirs = processor(noise(*size), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours, info = load_pixels(png(noise(*size)), ImageSpec(side_px, side_px, "bicubic", crop=True))
    assert np.array_equal(ours, theirs)
    assert (info.height, info.width) == size, "the reported size is that of the whole image"


@pytest.mark.parametrize("size", [(31, 33), (41, 97), (9, 8), (301, 255)])
@pytest.mark.parametrize("kind", [Gemma3ImageProcessorPil, SiglipImageProcessorPil])
def test_a_plain_resize_equals_the_original_processor_to_the_pixel(size: tuple[int, int], kind: Any) -> None:
    processor = kind(size={"height": 32, "width": 45}, do_rescale=False, do_normalize=False)
    theirs = processor(noise(*size), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours, _ = load_pixels(png(noise(*size)), image_spec(processor.to_dict()))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(8, 9000), (9000, 8)])
def test_only_the_middle_of_a_long_strip_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, to: tuple[int, int], *rest: Any) -> Image.Image:
        sizes.append(to)
        return resize(image, to, *rest)

    monkeypatch.setattr(Image.Image, "resize", watched)
    pixels, _ = load_pixels(png(noise(*size)), ImageSpec(32, 32, "bicubic", crop=True))
    assert pixels.shape == (32, 32, 3)
    assert max(sizes[0]) == 32 * MAX_ASPECT_RATIO


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": 48}, ImageSpec(48, 48, "bilinear")),
        ({"size": {"height": 48, "width": 32}, "resample": 3}, ImageSpec(48, 32, "bicubic")),
        (CROP, ImageSpec(32, 32, "bilinear", crop=True)),
        ({"size": 32, "do_center_crop": True, "crop_size": 32}, ImageSpec(32, 32, "bilinear", crop=True)),
        (CROP | CLIP_DEFAULTS, ImageSpec(32, 32, "bicubic", crop=True)),
    ],
)
def test_both_notations_of_a_size_are_read(processor: dict[str, Any], expected: ImageSpec) -> None:
    assert image_spec(processor) == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"do_resize": False}, "do_resize False"),
        ({"resample": 4}, "resample is 4"),
        ({"size": None}, "size None"),
        ({"size": {"shortest_edge": 40}}, "'shortest_edge': 40"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "'longest_edge': 64"),
        ({"size": {"height": 32, "width": 32}}, "do_center_crop True"),
        ({"crop_size": {"height": 32, "width": 24}}, "'width': 24"),
    ],
)
def test_unsupported_pixels_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelUnsupported, match=named):
        image_spec(CROP | changes)


def test_a_processor_and_a_tower_with_different_sizes_are_refused() -> None:
    class Tower:
        image_size = 48

    with pytest.raises(ModelUnsupported, match="image_size is 48, but the processor produces 32x32 px"):
        check_side(image_spec(CROP), Tower())


def test_normalisation_equals_transformers() -> None:
    processor = CLIPImageProcessorPil(**CROP)
    theirs = processor(noise(32, 32), return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(noise(32, 32)))[None]
    assert torch.allclose(Normalise(processor.to_dict())(pixels), theirs, atol=1e-5)
    off = Normalise({"do_rescale": False, "do_normalize": False})
    assert torch.equal(off(pixels), pixels.permute(0, 3, 1, 2).float())
