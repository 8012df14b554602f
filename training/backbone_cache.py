"""What the backbone's lower blocks see in each photo, kept on disk, because seeing is most of the work.

One file for each split and view: float16 (photos, 208, 9, 9). View 0 is the photo as it is served, 1 its mirror
image, further ones are seeded random crops with other light and colour.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from captioner.artifacts.onnx_session import open_session
from captioner.families.concept_encoder import IMAGE_PX, LOWER_SHAPE, ConceptEncoder
from captioner.image.decode import decode

BATCH = 16


@dataclass(frozen=True)
class View:
    """How a photo is changed before it is seen."""

    mirrored: bool = False
    box: tuple[float, float, float, float] = (0, 0, 1, 1)  # left, top, right, bottom, in parts of the photo
    brightness: float = 1.0
    contrast: float = 1.0
    colour: float = 1.0


def view_of(file: str, number: int) -> View:
    """View `number` of a photo; always the same for the same file."""
    if number < 2:
        return View(mirrored=number == 1)
    chance = random.Random(f"{file}:{number}")
    width, height = chance.uniform(0.7, 1), chance.uniform(0.7, 1)
    left, top = chance.uniform(0, 1 - width), chance.uniform(0, 1 - height)
    light = [chance.uniform(0.75, 1.3) for _ in range(3)]
    return View(chance.random() < 0.5, (left, top, left + width, top + height), *light)


def pixels(path: Path, view: View) -> NDArray[np.uint8]:
    """The view's pixels, uint8 (260, 260, 3), resized straight, as in serving."""
    image, _ = decode(path.read_bytes())
    for enhancer, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.colour),
    ):
        image = image if factor == 1 else enhancer(image).enhance(factor)
    (left, top, right, bottom), (width, height) = view.box, image.size
    box = (left * width, top * height, right * width, bottom * height)
    image = image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC, box)
    if view.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, dtype=np.uint8)


class LowerCache:
    """What the lower blocks see, by split and view, made when first asked for."""

    def __init__(self, folder: Path, data: Path, encoder: ConceptEncoder, threads: int) -> None:
        self.folder, self.data, self.encoder, self.threads = folder, data, encoder, threads
        folder.mkdir(parents=True, exist_ok=True)

    def view(self, files: list[str], number: int) -> NDArray[np.float16]:
        """View `number` of the photos `files`, mapped from disk: (photos, 208, 9, 9)."""
        key = hashlib.sha256("\n".join(files).encode()).hexdigest()[:12]
        path = self.folder / f"lower-{key}-view{number}.npy"
        if not path.is_file():
            self._make(path, files, number)
        seen: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return seen

    def _make(self, path: Path, files: list[str], number: int) -> None:
        session, part = self._session(), path.with_suffix(".part")
        shape = (len(files), *LOWER_SHAPE)
        seen: np.memmap[Any, Any] = np.lib.format.open_memmap(part, "w+", np.float16, shape)  # type: ignore[no-untyped-call]
        started = time.monotonic()
        for start in range(0, len(files), BATCH):
            chunk = files[start : start + BATCH]
            photos = np.stack([pixels(self.data / file, view_of(file, number)) for file in chunk])
            seen[start : start + len(chunk)] = session.run(None, {"pixels": photos})[0]
            if start % (BATCH * 20) == 0 or start + BATCH >= len(files):
                rate = (start + len(chunk)) / (time.monotonic() - started)
                left = (len(files) - start - len(chunk)) / rate
                print(
                    f"view {number}: {start + len(chunk)}/{len(files)} photos, {rate:.0f}/s, {left:.0f} s left",
                    flush=True,
                )
        seen.flush()
        part.rename(path)

    def _session(self) -> onnxruntime.InferenceSession:
        """The lower blocks in ONNX Runtime: four to six times as fast as in eager torch on a CPU."""
        path = self.folder / "lower.onnx"
        if not path.is_file():
            example = torch.zeros(2, IMAGE_PX, IMAGE_PX, 3, dtype=torch.uint8)
            torch.onnx.export(
                _Lower(self.encoder).eval(),
                (example,),
                path,
                dynamo=True,
                external_data=False,
                input_names=["pixels"],
                dynamic_shapes={"pixels_BHWC": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        return open_session(path, threads=self.threads)


class _Lower(torch.nn.Module):
    def __init__(self, encoder: ConceptEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        return self.encoder.lower(pixels_BHWC)
