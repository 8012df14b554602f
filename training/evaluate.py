"""python -m training.evaluate --data DIR: what a trained captioner is worth on a split, beside the retrieval floor.

Prints a table; `--card` writes the model card and the reliability diagram beside it, `--pictures` a page with the
photos themselves, for the eye alone: they are not this project's to publish.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.embedded import EMBEDDED_FOLDER, FORMS, Form
from training import caption_metrics, checkpoint, contact_sheet, model_card, retrieval_baseline
from training.backbone_cache import LowerCache
from training.batches import View
from training.dataset import Photo, Split, load_photos, texts
from training.figures import Figures, Table
from training.generate import Written, write
from training.model import Captioner
from training.validation import grids, loss

SETS = ("written", "coco")
SHOWN = 50


def main() -> None:
    """Measures, prints, writes what was asked for."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    captioner, tokenizer = checkpoint.load(options.model)
    cache = LowerCache(options.cache, options.data, captioner.encoder, options.threads)
    photos = load_photos(options.data, options.split)
    view = cache.view([photo.file for photo in photos], 0)
    captions = write(captioner, tokenizer, view, len(photos))
    known = load_photos(options.data, "train")
    floor = _floor(captioner, view, photos, cache.view([photo.file for photo in known], 0), known)
    figures = measure(
        options.split, photos, known, captions, floor, loss(captioner, tokenizer, photos, view), options.model
    )
    print(model_card.table(figures.table))
    print(model_card.sureness(figures))
    if options.card:
        model_card.write(options.model, figures)
    if options.pictures:
        contact_sheet.write(options.pictures, options.data, photos[:: len(photos) // SHOWN][:SHOWN], figures)


def measure(
    split: Split,
    photos: list[Photo],
    known: list[Photo],
    captions: dict[Form, list[Written]],
    floor: dict[Form, list[str]],
    nats: float,
    model: Path,
) -> Figures:
    """Every score of every form on every set; a photo's references are all its captions, of whatever length."""
    table: Table = {}
    for name in SETS:
        rows = [row for row, photo in enumerate(photos) if photo.written == (name == "written")]
        references = [texts(photos[row]) for row in rows]
        for form, written in captions.items():
            if form != "tags":
                table[name, form] = _scores([written[row].text for row in rows], references)
        for form, found in floor.items():
            table[name, f"floor: {form}"] = _scores([found[row] for row in rows], references)
    curve = checkpoint.calibration_of(model)
    medium = captions["medium"]
    right = np.array([caption_metrics.subject_right(c.text, texts(p)) for c, p in zip(medium, photos, strict=True)])
    sure = np.array([curve.confidence(c.mean_logprob) if curve else np.nan for c in medium])
    words = {
        form: float(np.mean([len(c.text.split(",") if form == "tags" else c.text.split()) for c in captions[form]]))
        for form in FORMS
    }
    return Figures(split, photos, known, nats, captions, table, words, sure, right)


def _scores(captions: list[str], references: Sequence[Sequence[str]]) -> dict[str, tuple[float, float, float]]:
    found = caption_metrics.score(captions, references, meteor=True) if captions else {}
    return {name: caption_metrics.interval(scores) for name, scores in found.items()}


def _floor(
    captioner: Captioner, view: View, photos: list[Photo], known_view: View, known: list[Photo]
) -> dict[Form, list[str]]:
    whole, known_whole = (_pooled(captioner, *each) for each in ((view, len(photos)), (known_view, len(known))))
    forms: tuple[Form, ...] = ("medium", "plain")
    return {form: retrieval_baseline.consensus(whole, known_whole, known, form) for form in forms}


def _pooled(captioner: Captioner, view: View, count: int) -> NDArray[np.float32]:
    return torch.cat([grid.mean(1) for grid in grids(captioner, view, count)]).numpy()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.json and photos/")
    parser.add_argument(
        "--model", type=Path, default=EMBEDDED_FOLDER, help="the captioner's files (the embedded model's)"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--cache", type=Path, default=Path("build/training"), help="for what the backbone saw")
    parser.add_argument("--card", action="store_true", help="write the model card into the model's folder")
    parser.add_argument("--pictures", type=Path, help="write 50 unpicked photos with their captions as an HTML page")
    parser.add_argument("--threads", type=int, default=2)
    return parser


if __name__ == "__main__":
    main()
