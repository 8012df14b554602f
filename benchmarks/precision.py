"""The vision encoder in fp32, fp16 and int8: size, time, and what it does to features and captions.

    python -m benchmarks.precision [--model embedded] [--data DIR] [--rounds 30]

Each graph is exported and lowered as always, with the shipped photos to calibrate on. Features are held against the
original's in torch, captions (greedy, the default prompt) against those of the graph in fp32. With `--data`, a folder
as `training/` reads it, both are of its validation photos and CIDEr is told; without, of crops of the shipped photos.
In each round every precision encodes the same batch in turn, on the CPU; a ratio is of one round, and what stands in
brackets is the middle half of the rounds. The weights of all models but `embedded` are random. The last line of stdout
is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks import seeded
from benchmarks.cells import machine
from benchmarks.images import crops
from benchmarks.seeded import Size
from captioner.artifacts.golden import overlap
from captioner.artifacts.onnx_session import open_session
from captioner.embedded import EMBEDDED_FOLDER
from captioner.engine.greedy import greedy
from captioner.engine.runner import Runner
from captioner.families import family
from captioner.families.base import Source
from captioner.image.decode import load_pixels
from captioner.wire import CAPTIONER, PIXELS, EncoderPrecision
from export.calibration_images import HELD_OUT, calibration_pixels
from export.export import export_decoder
from export.onnx_export import export_vision_encoder
from export.precision import PRECISIONS, Difference, compare, convert_precision

MODELS = ("embedded", "vit-gpt2", "blip", "git")
BATCHES = (1, 8)
PICTURES = 48  # without --data
TOKENS = 24  # of a caption, at most
SLOTS = 16
Features = NDArray[np.float32]


@dataclass
class Report:
    """One precision. Times are of one image in ms, `faster` is fp32's time over this one's; both by batch."""

    precision: EncoderPrecision
    mb: float
    difference: Difference
    equal: float  # share of the captions that are fp32's
    words: float  # twice the words that both captions have over all their words
    company: float  # cosine on average between a picture's features alone and in a batch of 8
    ms: dict[int, list[float]] = field(default_factory=dict)
    faster: dict[int, list[float]] = field(default_factory=dict)
    cider: float | None = None
    cider_lost: tuple[float, float, float] | None = None  # to fp32: mean, 95 % interval


class Bench:
    """One model, its graphs, and the pictures to compare on."""

    def __init__(self, model: str, place: Path, threads: int, size: Size = "published") -> None:
        self.model, self.place = model, place
        folder = EMBEDDED_FOLDER
        if model != "embedded":
            folder = place / "model"
            folder.mkdir()
            seeded.save(model, folder, size)
        self.model_type = json.loads((folder / "config.json").read_text())["model_type"]
        self.source: Source = family(self.model_type).load(folder)
        self.paths = self._lowered()
        self.sessions = {name: open_session(path, threads=threads) for name, path in self.paths.items()}

    def _lowered(self) -> dict[EncoderPrecision, Path]:
        calibration = calibration_pixels(self.source.image)[:-HELD_OUT]
        exported = export_vision_encoder(self.source, self.place, {"model": self.model})
        paths = {}
        for name in PRECISIONS:
            folder = self.place / name
            folder.mkdir()
            paths[name] = Path(shutil.copy2(exported, folder))
            convert_precision(paths[name], name, calibration, lambda text: print(text, flush=True))
        return paths

    def encode(self, name: EncoderPrecision, pixels_BHWC: NDArray[np.uint8], batch: int = 8) -> Features:
        """Features of the graph in one precision."""
        parts = (pixels_BHWC[start : start + batch] for start in range(0, len(pixels_BHWC), batch))
        return np.concatenate([self.sessions[name].run(None, {PIXELS.name: part})[0] for part in parts])

    @torch.inference_mode()
    def original(self, pixels_BHWC: NDArray[np.uint8]) -> Features:
        """Features of the original in torch."""
        parts = torch.from_numpy(pixels_BHWC).split(8)
        features: Features = torch.cat([self.source.vision_encoder(part) for part in parts]).numpy()
        return features

    @torch.inference_mode()
    def captions(self, features_BTD: Features) -> list[str]:
        """What the decoder writes of these features."""
        folder, kind = self.place / CAPTIONER, family(self.model_type)
        if not folder.is_dir():
            folder.mkdir()
            export_decoder(self.source, folder)
        shape = features_BTD.shape[1], features_BTD.shape[2]
        manifest = self.source.manifest(
            family=self.model_type, model=self.model, revision="", feature_shape=shape, files={}
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = kind.prompt_ids(tokenizer, manifest, manifest.prompts.render(None, None))
        most = min(TOKENS, manifest.context_tokens - len(ids))
        runner = Runner(kind.decoder(folder, manifest, "fp32", torch.device("cpu")), SLOTS)
        written: list[str] = []
        for part in torch.from_numpy(features_BTD).split(SLOTS):
            tokens = greedy(runner, manifest.stop_ids, [(ids, features, most) for features in part])
            written += (tokenizer.decode(row).strip() for row in tokens)
        return written

    def time(self, pixels_BHWC: NDArray[np.uint8], rounds: int) -> dict[EncoderPrecision, list[float]]:
        """Seconds that each precision takes for the batch, once a round, after one to warm up."""
        taken: dict[EncoderPrecision, list[float]] = {name: [] for name in PRECISIONS}
        for _ in range(rounds + 1):
            for name, session in self.sessions.items():
                start = time.perf_counter()
                session.run(None, {PIXELS.name: pixels_BHWC})
                taken[name].append(time.perf_counter() - start)
        return {name: seconds[1:] for name, seconds in taken.items()}


def measure(bench: Bench, data: Path | None, rounds: int) -> list[Report]:
    """All precisions of one model."""
    image, references = bench.source.image, None
    if data is None:
        files = list(islice(crops(seed=1), PICTURES))
    else:
        from training.dataset import load_photos, texts

        photos = load_photos(data, "val")
        files = [(data / photo.file).read_bytes() for photo in photos]
        references = [texts(photo) for photo in photos]
    pixels = np.stack([load_pixels(file, image)[0] for file in files])
    expected = bench.original(pixels)
    reports, first = [], None
    for name, path in bench.paths.items():
        found = bench.encode(name, pixels)
        captions = bench.captions(found)
        first = captions if first is None else first
        pairs = list(zip(first, captions, strict=True))
        report = Report(
            name,
            path.stat().st_size / 1e6,
            compare(expected, found),
            equal=float(np.mean([one == other for one, other in pairs])),
            words=float(np.mean([overlap(one.split(), other.split()) for one, other in pairs])),
            company=compare(bench.encode(name, pixels[:8], 1), found[:8]).mean,
        )
        if references is not None:
            _score(report, first, captions, references)
        reports.append(report)
    for batch in BATCHES:
        seconds = bench.time(pixels[:batch], rounds)
        for report in reports:
            report.ms[batch] = [1000 * each / batch for each in seconds[report.precision]]
            pairs_s = zip(seconds["fp32"], seconds[report.precision], strict=True)
            report.faster[batch] = [whole / lowered for whole, lowered in pairs_s]
    return reports


def _score(report: Report, first: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    from training import caption_metrics

    whole, lowered = (caption_metrics.score(each, references)["CIDEr"] for each in (first, captions))
    report.cider, report.cider_lost = float(lowered.mean()), caption_metrics.interval(whole - lowered)


def table(reports: Sequence[Report]) -> str:
    """The reports for people, in Markdown."""
    columns = ["precision", "MB", *(f"ms an image at {batch}" for batch in BATCHES)]
    columns += [f"fp32's time over it at {batch}" for batch in BATCHES]
    columns += ["largest difference", "cosine, typical", "on average", "alone and among 8"]
    columns += ["captions equal", "words shared", "CIDEr", "lost"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in reports:
        cells = [one.precision, f"{one.mb:.1f}"]
        cells += [f"{statistics.median(one.ms[batch]):.1f}" for batch in BATCHES]
        cells += [_spread(one.faster[batch]) for batch in BATCHES]
        cells += [f"{one.difference.largest:.1e}", f"{one.difference.typical:.5f}", f"{one.difference.mean:.4f}"]
        cells += [f"{one.company:.5f}", f"{one.equal:.0%}", f"{one.words:.0%}"]
        cells += ["" if one.cider is None else f"{one.cider:.3f}"]
        cells += ["" if one.cider_lost is None else "{:.3f} ({:.3f} to {:.3f})".format(*one.cider_lost)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Median, and the middle half of the rounds."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    """Arguments, the table, the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", choices=MODELS)
    parser.add_argument("--data", type=Path, help="folder with captions.json and photos/")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="of torch and of ONNX Runtime")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        reports = measure(Bench(given.model, Path(place), given.threads), given.data, given.rounds)
    print(table(reports))
    where = machine() | {"onnxruntime": onnxruntime.__version__}
    print(json.dumps({"benchmark": "precision", "model": given.model, "machine": where,
                      "reports": list(map(asdict, reports))}))  # fmt: skip


if __name__ == "__main__":
    main()
