"""Cache the output of the backbone's frozen lower blocks on disk, because computing it is most of the training time.

One file for each split and view, float16 (photos, 220, 9, 9). View 0 is the photo as it is served, view 1 its mirror
image; views from 2 on are seeded random crops with other brightness, contrast and color.
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
class Augmentation:
    """How a photo is changed before it is encoded."""

    mirrored: bool = False
    box: tuple[float, float, float, float] = (0, 0, 1, 1)  # left, top, right, bottom, as shares of the photo
    brightness: float = 1.0
    contrast: float = 1.0
    color: float = 1.0


def augmentation(file: str, view: int) -> Augmentation:
    """Return the augmentation of one view of a photo; the same for the same file name and view."""
    if view < 2:
        return Augmentation(mirrored=view == 1)
    rng = random.Random(f"{file}:{view}")
    width, height = rng.uniform(0.7, 1), rng.uniform(0.7, 1)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    light = [rng.uniform(0.75, 1.3) for _ in range(3)]
    return Augmentation(rng.random() < 0.5, (left, top, left + width, top + height), *light)


def pixels(path: Path, change: Augmentation) -> NDArray[np.uint8]:
    """Return the pixels of one view, uint8 (260, 260, 3), resized without keeping the aspect, as in serving."""
    image, _ = decode(path.read_bytes())
    for enhancer, factor in (
        (ImageEnhance.Brightness, change.brightness),
        (ImageEnhance.Contrast, change.contrast),
        (ImageEnhance.Color, change.color),
    ):
        image = image if factor == 1 else enhancer(image).enhance(factor)
    (left, top, right, bottom), (width, height) = change.box, image.size
    box = (left * width, top * height, right * width, bottom * height)
    image = image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC, box)
    if change.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, dtype=np.uint8)


class BackboneCache:
    """The lower blocks' output for photos of the folder `data`, computed on first use and kept in `folder`."""

    def __init__(self, folder: Path, data: Path, encoder: ConceptEncoder, threads: int) -> None:
        self.folder, self.data, self.encoder, self.threads = folder, data, encoder, threads
        folder.mkdir(parents=True, exist_ok=True)

    def features(self, files: list[str], view: int) -> NDArray[np.float16]:
        """Return one view of the photos `files`, memory-mapped, (photos, 220, 9, 9)."""
        key = hashlib.sha256("\n".join(files).encode()).hexdigest()[:12]
        path = self.folder / f"lower-{LOWER_SHAPE[0]}-{key}-view{view}.npy"
        if not path.is_file():
            self._compute(path, files, view)
        features: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return features

    def _compute(self, path: Path, files: list[str], view: int) -> None:
        session, part = self._session(), path.with_suffix(".part")
        shape = (len(files), *LOWER_SHAPE)
        features: np.memmap[Any, Any] = np.lib.format.open_memmap(part, "w+", np.float16, shape)  # type: ignore[no-untyped-call]
        started = time.monotonic()
        for start in range(0, len(files), BATCH):
            chunk = files[start : start + BATCH]
            photos = np.stack([pixels(self.data / file, augmentation(file, view)) for file in chunk])
            features[start : start + len(chunk)] = session.run(None, {"pixels": photos})[0]
            if start % (BATCH * 20) == 0 or start + BATCH >= len(files):
                rate = (start + len(chunk)) / (time.monotonic() - started)
                left = (len(files) - start - len(chunk)) / rate
                print(
                    f"view {view}: {start + len(chunk)}/{len(files)} photos, {rate:.0f}/s, {left:.0f} s left",
                    flush=True,
                )
        features.flush()
        part.rename(path)

    def _session(self) -> onnxruntime.InferenceSession:
        """Return the lower blocks in ONNX Runtime: four to six times as fast as eager torch on a CPU."""
        path = self.folder / f"lower-{LOWER_SHAPE[0]}.onnx"
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
