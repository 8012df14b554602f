"""Images of dynamic size equal those of transformers' own image processor, pixel by pixel, for images of any shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from captioner.image.decode import load_pixels
from captioner.image.dynamic_size import fitted
from captioner.image.limits import MAX_SIDE_PX, MIN_SIDE_PX
from captioner.image.spec import ImageSpec
from tests.image.pictures import file

QWEN3 = ImageSpec(32, 32, "bicubic", min_pixels=65536, max_pixels=1280 * 32 * 32)
SMALL = ImageSpec(8, 8, "bicubic", min_pixels=2 * 64, max_pixels=24 * 64)


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def theirs(image: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Return the pixels of transformers' processor, put together from its patches."""
    made = Qwen2VLImageProcessorPil(
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        patch_size=spec.height // 2,
        merge_size=2,
        do_rescale=False,
        do_normalize=False,
    )(image, return_tensors="np")
    _, height, width = made["image_grid_thw"][0]
    side = spec.height // 2
    patches = made["pixel_values"].reshape(height // 2, width // 2, 2, 2, 3, 2, side, side)
    assert np.array_equal(patches[:, :, :, :, :, 0], patches[:, :, :, :, :, 1]), "two equal frames"
    pixels = patches[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4).reshape(height * side, width * side, 3)
    found: NDArray[np.uint8] = pixels.astype(np.uint8)
    assert np.array_equal(pixels, found)
    return found


@settings(max_examples=500)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    cell_px=st.sampled_from([8, 28, 32]),
    least=st.integers(0, 64),
    most=st.integers(64, 1280),
)
@example(2600, 13, 32, 64, 64)  # their size is above their limit
def test_the_size_of_any_image_is_that_of_the_models_processor_or_within_its_limit(
    width: int, height: int, cell_px: int, least: int, most: int
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    limits = least * cell_px**2, most * cell_px**2
    rows, columns = fitted(width, height, cell_px, *limits)
    assert 1 <= rows * columns <= most
    expected = smart_resize(height, width, cell_px, *limits)
    if 0 < expected[0] * expected[1] <= limits[1]:
        assert (rows * cell_px, columns * cell_px) == expected


@pytest.mark.parametrize("size", [(MAX_SIDE_PX, MIN_SIDE_PX), (MIN_SIDE_PX, MAX_SIDE_PX), (MAX_SIDE_PX, 6000)])
@pytest.mark.parametrize("spec", [QWEN3, SMALL])
def test_no_image_has_more_cells_than_the_specification_permits(size: tuple[int, int], spec: ImageSpec) -> None:
    rows, columns = fitted(*size, spec.height, spec.min_pixels, spec.max_pixels or 0)
    assert 1 <= spec.parts(rows, columns) <= spec.parts(*spec.max_grid)


@settings(max_examples=60)
@given(width=st.integers(8, 400), height=st.integers(8, 400))
@example(8, 180)
@example(33, 31)
@example(399, 397)
@example(32, 48)
def test_the_pixels_of_any_image_equal_those_of_the_models_processor(width: int, height: int) -> None:
    image = noise(width, height)
    sides = smart_resize(height, width, 8, SMALL.min_pixels, SMALL.max_pixels or 0)
    assume(sides[0] * sides[1] <= (SMALL.max_pixels or 0))  # of long strips it makes more
    pixels, info = load_pixels(file(image, "PNG"), SMALL)
    assert np.array_equal(pixels, theirs(image, SMALL))
    assert pixels.shape == (*SMALL.pixel_size(info.grid_rows, info.grid_columns), 3)
    assert (info.width, info.height) == (width, height)


@pytest.mark.parametrize("size", [(641, 479), (333, 1001), (1999, 1501), (100, 101)])
def test_the_pixels_of_the_published_size_equal_those_of_the_models_processor(size: tuple[int, int]) -> None:
    pixels, _ = load_pixels(file(noise(*size), "PNG"), QWEN3)
    assert np.array_equal(pixels, theirs(noise(*size), QWEN3))


@pytest.mark.parametrize("size", [(641, 479), (333, 1001), (1999, 1501), (100, 101)])
def test_torchvisions_processor_differs_by_at_most_two_levels_and_rarely(size: tuple[int, int]) -> None:
    """Its resize of uint8 images is this function of torch."""
    pixels, _ = load_pixels(file(noise(*size), "PNG"), QWEN3)
    image = torch.from_numpy(np.array(noise(*size))).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        image, pixels.shape[:2], mode="bicubic", align_corners=False, antialias=True
    )
    difference = np.abs(resized[0].permute(1, 2, 0).numpy().astype(int) - pixels)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01, "of noise, which is the worst case"


def test_a_grid_of_cells_has_as_many_pixels_and_parts() -> None:
    assert QWEN3.pixel_size(3, 5) == (96, 160)
    assert QWEN3.parts(3, 5) == 15
    assert QWEN3.parts(*QWEN3.max_grid) == 1280
    assert QWEN3.parts(*QWEN3.min_grid) == 1
    tiled = replace(QWEN3, max_pixels=None, longest_px=96)
    assert (tiled.pixel_size(3, 2), tiled.parts(3, 2), tiled.max_grid, tiled.min_grid) == ((224, 32), 7, (3, 3), (0, 0))
