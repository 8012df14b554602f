"""The photos that calibrate int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.errors import ImageMissing, ParameterInvalid
from captioner.examples import PHOTOS
from captioner.image.spec import ImageSpec
from export.calibration_images import calibration_pixels

SPEC = ImageSpec(32, 32, "bicubic")


def test_calibration_with_the_shipped_photos_is_deterministic() -> None:
    found = calibration_pixels(SPEC, count=12)
    assert found.shape == (12, 32, 32, 3) and found.dtype == np.uint8
    assert len({picture.tobytes() for picture in found}) == 12
    np.testing.assert_array_equal(found, calibration_pixels(SPEC, count=12))


def test_a_tiled_model_is_calibrated_with_single_tiles() -> None:
    assert calibration_pixels(ImageSpec(32, 32, "lanczos", longest_px=128), count=3).shape == (3, 32, 32, 3)


def test_photos_of_a_folder_come_whole_before_crops_and_broken_files_are_skipped(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (90, 60), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(PHOTOS[0].read_bytes()[:2000])
    (tmp_path / "notes.txt").write_text("not a photo")
    found = calibration_pixels(SPEC, tmp_path, 8)
    assert {tuple(picture[0, 0].tolist()) for picture in found[:3]} == set(colours)
    assert len(found) == 8


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterInvalid, match="no readable photo"):
        calibration_pixels(SPEC, tmp_path)
    with pytest.raises(ImageMissing, match="nowhere"):
        calibration_pixels(SPEC, tmp_path / "nowhere")
