"""Tiles equal those of transformers' own image processors, pixel by pixel, for images of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from captioner.image import tiles
from captioner.image.decode import load_pixels
from captioner.image.spec import ImageSpec
from tests.image.pictures import NOISE, file

LANCZOS = Image.Resampling.LANCZOS


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def theirs(
    kind: type, image: Image.Image, tile_px: int, longest_px: int, resample: Image.Resampling = LANCZOS
) -> tuple[NDArray[np.uint8], int, int]:
    """The tiles of transformers' processor, in the layout of `tiles.cut`."""
    made = kind(
        size={"longest_edge": longest_px},
        max_image_size={"longest_edge": tile_px},
        resample=resample,
        do_rescale=False,
        do_normalize=False,
    )([[image]], return_row_col_info=True, return_tensors="np")
    pixels_NCHW = made["pixel_values"][0]
    pixels_HWC = pixels_NCHW.transpose(0, 2, 3, 1).reshape(-1, tile_px, 3)
    assert np.array_equal(pixels_HWC, pixels_HWC.astype(np.uint8))
    return pixels_HWC.astype(np.uint8), made["rows"][0][0], made["cols"][0][0]


def assert_equal(ours: tuple[NDArray[np.uint8], int, int], expected: tuple[NDArray[np.uint8], int, int]) -> None:
    assert ours[1:] == expected[1:], "rows and columns"
    assert ours[0].shape == expected[0].shape
    assert np.array_equal(ours[0], expected[0])


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    tile_px=st.sampled_from([7, 14, 16, 32]),
    longest_px=st.integers(8, 130),
    kind=st.sampled_from([Idefics3ImageProcessorPil, SmolVLMImageProcessorPil]),
    resample=st.sampled_from([Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR]),
)
@example(400, 1, 32, 128, Idefics3ImageProcessorPil, LANCZOS)
@example(1, 400, 32, 128, Idefics3ImageProcessorPil, LANCZOS)
@example(399, 400, 32, 127, Idefics3ImageProcessorPil, LANCZOS)
@example(30, 20, 32, 32, Idefics3ImageProcessorPil, LANCZOS)
def test_tiles_of_any_image_equal_those_of_the_models_processor(
    width: int, height: int, tile_px: int, longest_px: int, kind: type, resample: Image.Resampling
) -> None:
    image = noise(width, height)
    ours = tiles.cut(image, tile_px, longest_px, resample)
    assert_equal(ours, theirs(kind, image, tile_px, longest_px, resample))


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"), [(640, 480, 3, 4), (333, 1000, 4, 2), (4000, 100, 1, 4)]
)
def test_tiles_of_the_published_size_equal_those_of_the_models_processor(
    width: int, height: int, rows: int, columns: int
) -> None:
    image = noise(width, height)
    ours = tiles.cut(image, 512, 2048, LANCZOS)
    assert ours[1:] == (rows, columns)
    assert_equal(ours, theirs(SmolVLMImageProcessorPil, image, 512, 2048))


def test_a_file_becomes_stacked_tiles_with_the_whole_image_last() -> None:
    spec = ImageSpec(8, 8, "lanczos", longest_px=32)
    pixels, info = load_pixels(file(NOISE, "PNG"), spec)
    expected, rows, columns = theirs(Idefics3ImageProcessorPil, NOISE, 8, 32)
    assert pixels.dtype == np.uint8
    assert (info.grid_rows, info.grid_columns) == (rows, columns)
    assert pixels.shape == ((rows * columns + 1) * 8, 8, 3)
    assert np.array_equal(pixels, expected)
    assert (info.width, info.height) == NOISE.size


def test_an_image_that_fits_in_one_tile_is_not_split() -> None:
    pixels, info = load_pixels(file(NOISE, "PNG"), ImageSpec(32, 32, "lanczos", longest_px=32))
    assert pixels.shape == (32, 32, 3)
    assert (info.grid_rows, info.grid_columns) == (0, 0)


def test_the_largest_grid_limits_the_tiles_along_a_side_and_is_reached() -> None:
    spec = ImageSpec(16, 16, "bilinear", longest_px=60)
    for width, height in [(60, 60), (60, 59), (8, 400), (400, 8), (63, 64)]:
        _, info = load_pixels(file(noise(width, height), "PNG"), spec)
        assert max(info.grid_rows, info.grid_columns) == max(spec.max_grid) == 4
