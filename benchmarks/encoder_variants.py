"""One model's vision encoder in every precision, exported as usual: its features, captions and times."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks import seeded
from benchmarks.seeded import Size
from captioner.artifacts.onnx_session import open_session
from captioner.embedded import EMBEDDED_FOLDER
from captioner.engine.greedy import greedy
from captioner.engine.runner import Runner
from captioner.families import family
from captioner.families.base import Source
from captioner.wire import CAPTIONER, PIXELS, EncoderPrecision
from export.calibration_images import HELD_OUT, calibration_pixels
from export.export import export_decoder
from export.onnx_export import export_vision_encoder
from export.precision import PRECISIONS, convert_precision

BATCH = 8
MAX_TOKENS = 24
SLOTS = 16
Features = NDArray[np.float32]


class EncoderVariants:
    """The fp32, fp16 and int8 graphs of one model, made in `folder` and calibrated on the shipped photos."""

    def __init__(self, model: str, folder: Path, threads: int, size: Size = "published") -> None:
        self.model, self.folder = model, folder
        source_folder = EMBEDDED_FOLDER
        if model != "embedded":
            source_folder = folder / "model"
            source_folder.mkdir()
            seeded.save(model, source_folder, size)
        self.model_type = json.loads((source_folder / "config.json").read_text())["model_type"]
        self.source: Source = family(self.model_type).load(source_folder)
        self.paths = self._convert()
        self.sessions = {name: open_session(path, threads=threads) for name, path in self.paths.items()}

    def _convert(self) -> dict[EncoderPrecision, Path]:
        calibration = calibration_pixels(self.source.image)[:-HELD_OUT]
        exported = export_vision_encoder(self.source, self.folder, {"model": self.model})
        paths = {}
        for name in PRECISIONS:
            folder = self.folder / name
            folder.mkdir()
            paths[name] = Path(shutil.copy2(exported, folder))
            convert_precision(paths[name], name, calibration, lambda text: print(text, flush=True))
        return paths

    def encode(self, name: EncoderPrecision, pixels_BHWC: NDArray[np.uint8], batch: int = BATCH) -> Features:
        """Return the features of one graph, (B, tokens, width), computed in batches of `batch`."""
        parts = (pixels_BHWC[start : start + batch] for start in range(0, len(pixels_BHWC), batch))
        return np.concatenate([self.sessions[name].run(None, {PIXELS.name: part})[0] for part in parts])

    @torch.inference_mode()
    def original(self, pixels_BHWC: NDArray[np.uint8]) -> Features:
        """Return the original's features in torch, (B, tokens, width)."""
        parts = torch.from_numpy(pixels_BHWC).split(BATCH)
        features: Features = torch.cat([self.source.vision_encoder(part) for part in parts]).numpy()
        return features

    @torch.inference_mode()
    def captions(self, features_BTD: Features) -> list[str]:
        """Return the greedy captions of these features for the default prompt, up to MAX_TOKENS tokens each."""
        folder, kind = self.folder / CAPTIONER, family(self.model_type)
        if not folder.is_dir():
            folder.mkdir()
            export_decoder(self.source, folder)
        shape = features_BTD.shape[1], features_BTD.shape[2]
        manifest = self.source.manifest(
            family=self.model_type, model=self.model, revision="", feature_shape=shape, files={}
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = kind.prompt_ids(tokenizer, manifest, manifest.prompts.render(None, None))
        limit = min(MAX_TOKENS, manifest.context_tokens - len(ids))
        runner = Runner(kind.decoder(folder, manifest, "fp32", torch.device("cpu")), SLOTS)
        captions: list[str] = []
        for part in torch.from_numpy(features_BTD).split(SLOTS):
            tokens = greedy(runner, manifest.stop_ids, [(ids, features, limit) for features in part])
            captions += (tokenizer.decode(row).strip() for row in tokens)
        return captions

    def time(self, pixels_BHWC: NDArray[np.uint8], rounds: int) -> dict[EncoderPrecision, list[float]]:
        """Return the seconds per batch of each precision in each round; precisions alternate, after one warm-up."""
        seconds: dict[EncoderPrecision, list[float]] = {name: [] for name in PRECISIONS}
        for _ in range(rounds + 1):
            for name, session in self.sessions.items():
                start = time.perf_counter()
                session.run(None, {PIXELS.name: pixels_BHWC})
                seconds[name].append(time.perf_counter() - start)
        return {name: each[1:] for name, each in seconds.items()}
