"""The vision encoder in fp32, fp16 and int8: size, time, features and captions.

    python -m benchmarks.precision [--model embedded] [--data DIR] [--rounds 30]

Each graph is exported and converted in the usual way, calibrated on the shipped photos. Features are compared with the
original's in torch. Captions (greedy, the default prompt) are compared with those of the fp32 graph. With `--data`, a
folder as `training/` reads it, the images are its validation photos, and CIDEr is reported; otherwise they are crops of
the shipped photos. In each round, every precision encodes the same batch in turn, on the CPU. A speedup is of one
round; brackets show the middle half of the rounds. All models but `embedded` have random weights. The last line of
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from benchmarks.encoder_variants import BATCH, EncoderVariants
from benchmarks.images import crops
from benchmarks.measurement import machine
from captioner.artifacts.golden import overlap
from captioner.image.decode import load_pixels
from captioner.wire import EncoderPrecision
from export.precision import Difference, compare

MODELS = ("embedded", "vit-gpt2", "blip", "git")
BATCHES = (1, BATCH)
IMAGES = 48  # without --data


@dataclass
class Report:
    """The results of one precision. `ms` (per image) and `speedup` (fp32's time over this one's) are by batch size."""

    precision: EncoderPrecision
    mb: float
    difference: Difference
    equal_captions: float  # share of the captions that equal fp32's
    shared_words: float  # twice the words that both captions have over all their words
    batch_cosine: float  # mean cosine between an image's features alone and in a batch of 8
    ms: dict[int, list[float]] = field(default_factory=dict)
    speedup: dict[int, list[float]] = field(default_factory=dict)
    cider: float | None = None
    cider_loss: tuple[float, float, float] | None = None  # against fp32: mean, 95 % interval


def measure(variants: EncoderVariants, data: Path | None, rounds: int) -> list[Report]:
    """Measure all precisions of one model."""
    spec, references = variants.source.image, None
    if data is None:
        files = list(islice(crops(seed=1), IMAGES))
    else:
        from training import dataset

        photos = dataset.load_photos(data, "val")
        files = [(data / photo.file).read_bytes() for photo in photos]
        references = [dataset.references(photo) for photo in photos]
    pixels = np.stack([load_pixels(file, spec)[0] for file in files])
    expected = variants.original(pixels)
    reports, fp32_captions = [], None
    for name, path in variants.paths.items():
        features = variants.encode(name, pixels)
        captions = variants.captions(features)
        fp32_captions = captions if fp32_captions is None else fp32_captions
        pairs = list(zip(fp32_captions, captions, strict=True))
        report = Report(
            name,
            path.stat().st_size / 1e6,
            compare(expected, features),
            equal_captions=float(np.mean([fp32 == other for fp32, other in pairs])),
            shared_words=float(np.mean([overlap(fp32.split(), other.split()) for fp32, other in pairs])),
            batch_cosine=compare(variants.encode(name, pixels[:BATCH], 1), features[:BATCH]).mean,
        )
        if references is not None:
            _score(report, fp32_captions, captions, references)
        reports.append(report)
    for batch in BATCHES:
        seconds = variants.time(pixels[:batch], rounds)
        for report in reports:
            report.ms[batch] = [1000 * each / batch for each in seconds[report.precision]]
            pairs_s = zip(seconds["fp32"], seconds[report.precision], strict=True)
            report.speedup[batch] = [fp32_s / own_s for fp32_s, own_s in pairs_s]
    return reports


def _score(report: Report, fp32: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    from training import caption_metrics

    before, after = (caption_metrics.score(each, references)["CIDEr"] for each in (fp32, captions))
    report.cider, report.cider_loss = float(after.mean()), caption_metrics.interval(before - after)


def table(reports: Sequence[Report]) -> str:
    """Return the reports as a Markdown table."""
    columns = ["precision", "MB", *(f"ms per image, batch {batch}" for batch in BATCHES)]
    columns += [f"speedup, batch {batch}" for batch in BATCHES]
    columns += ["largest difference", "cosine, median", "cosine, mean", "alone against batch of 8"]
    columns += ["captions equal", "words shared", "CIDEr", "CIDEr lost"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in reports:
        cells = [one.precision, f"{one.mb:.1f}"]
        cells += [f"{statistics.median(one.ms[batch]):.1f}" for batch in BATCHES]
        cells += [_quartiles(one.speedup[batch]) for batch in BATCHES]
        cells += [f"{one.difference.largest:.1e}", f"{one.difference.typical:.5f}", f"{one.difference.mean:.4f}"]
        cells += [f"{one.batch_cosine:.5f}", f"{one.equal_captions:.0%}", f"{one.shared_words:.0%}"]
        cells += ["" if one.cider is None else f"{one.cider:.3f}"]
        cells += ["" if one.cider_loss is None else "{:.3f} ({:.3f} to {:.3f})".format(*one.cider_loss)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _quartiles(values: Sequence[float]) -> str:
    """Return the median, and the first and third quartile in brackets."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    """Run the benchmark that the command line names; print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", choices=MODELS, help="default %(default)s")
    parser.add_argument("--data", type=Path, help="folder with captions.json and photos/")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of timing (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and ONNX Runtime (default %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        reports = measure(EncoderVariants(given.model, Path(folder), given.threads), given.data, given.rounds)
    print(table(reports))
    document = {
        "benchmark": "precision",
        "model": given.model,
        "machine": machine() | {"onnxruntime": onnxruntime.__version__},
        "reports": list(map(asdict, reports)),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
