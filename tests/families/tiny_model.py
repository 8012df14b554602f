"""A tiny model of a family: its folder, source, published decoder, and requests with the original's captions."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from benchmarks import seeded
from benchmarks.images import png
from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.load_weights import Precision
from captioner.embedded import EMBEDDED_FOLDER
from captioner.families import family
from captioner.families.base import Source
from captioner.image.decode import load_pixels
from tests.families.cases import CASES
from tests.support.greedy import Request, publish

# Sizes in pixels, which give tiled models different numbers of tiles, and prompts of different lengths.
ASKED = (
    ((64, 64), "what is it?"),
    ((64, 9), ""),
    ((40, 90), "tell it all, please"),
    ((90, 70), "|  and a name: é 猫"),
    ((200, 30), "wide"),
    ((30, 200), "tall"),
    ((70, 70), "two dogs"),  # what a trained model continues: of noise, it says little
    ((80, 60), "a plate of"),
)


def noise(size: tuple[int, int], seed: int = 3) -> Image.Image:
    """Return a noise image of (width, height) px."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class TinyModel:
    """Everything that tests need of one family, made once when it is first needed."""

    def __init__(self, model_type: str, root: Path) -> None:
        self.model_type = model_type
        self.case = CASES[model_type]
        self.kind = family(model_type)
        self._root = root

    @cached_property
    def folder(self) -> Path:
        """The model as on the Hub."""
        if self.case.seeded is None:
            return EMBEDDED_FOLDER
        folder = self._root / "model"
        seeded.save(self.case.seeded, folder, "tiny")
        return folder

    @cached_property
    def source(self) -> Source:
        """The loaded model."""
        return self.kind.load(self.folder)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of the published version in `version`."""
        return publish(self.source, self.model_type, self.version)

    @cached_property
    def version(self) -> Path:
        """The published version's folder."""
        return self._root / "published"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the server."""
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def read(self, image: Image.Image, text: str) -> tuple[torch.Tensor, list[int]]:
        """Return pixels (height, width, 3) and prompt ids, as the server computes them."""
        pixels, info = load_pixels(png(image), self.source.image)
        ids = self.kind.prompt_ids(self.tokenizer, self.manifest, text, info.grid_rows, info.grid_columns)
        return torch.from_numpy(pixels.copy()), ids

    @cached_property
    def inputs(self) -> list[tuple[torch.Tensor, list[int]]]:
        """Pixels and prompt ids of ASKED."""
        return [self.read(noise(size, seed), text) for seed, (size, text) in enumerate(ASKED)]

    def features(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """Return the features of a batch, (B, image tokens, width)."""
        with torch.inference_mode():
            features: torch.Tensor = self.source.vision_encoder(pixels_BHWC)
        return features

    @cached_property
    def requests(self) -> list[Request]:
        """ASKED as requests of a decoder."""
        return [(self.decoder_features(pixels), ids, self.case.limit) for pixels, ids in self.inputs]

    def decoder_features(self, pixels_HWC: torch.Tensor) -> torch.Tensor:
        """Return the features of one image as the decoder reads them."""
        image, features = self.source.image, self.features(pixels_HWC[None])[0]
        if image.max_pixels is None:
            return features
        grid = pixels_HWC.shape[0] // image.height, pixels_HWC.shape[1] // image.width
        return features.reshape(self.manifest.feature_shape(*grid))

    @cached_property
    def expected(self) -> list[list[int]]:
        """The original's captions of ASKED."""
        return [self.source.generate(pixels, ids, max_new_tokens=self.case.limit) for pixels, ids in self.inputs]

    def decoder(self, slots: int = len(ASKED), device: str = "cpu", precision: Precision = "fp32") -> Decoder:
        """Return the published decoder with its slots."""
        decoder = self.kind.decoder(self.version, self.manifest, precision, torch.device(device))
        decoder.allocate(slots)
        return decoder

    def changed(self, to: Path, file_name: str, **changes: Any) -> Path:
        """Return a copy of the model folder with changed keys in one JSON file; `*_config` values are merged."""
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        values = json.loads((to / file_name).read_text())
        for key, value in changes.items():
            is_part = key.endswith("_config") and isinstance(values.get(key), dict)
            values[key] = values[key] | value if is_part else value
        (to / file_name).write_text(json.dumps(values))
        return to
