"""Evaluate a captioner on one split, next to the retrieval baseline, and print a table.

    python -m training.evaluate --data DIR

`--card` writes the model card and the reliability diagram. `--pictures` writes a page with the photos themselves, for
checking by eye: this project may not publish them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.embedded import EMBEDDED_FOLDER, FORMS, Form
from captioner.embedded.styles import DEFAULT_FORM
from training import caption_metrics, checkpoint, contact_sheet, model_card, retrieval_baseline
from training.backbone_cache import BackboneCache
from training.batches import LowerFeatures
from training.dataset import Photo, Set, Split, load_photos, references
from training.generate import GeneratedCaption, generate_captions
from training.model import Captioner
from training.results import Results, Table
from training.validation import grids, validation_loss

SHEET_PHOTOS = 100


def main() -> None:
    """Evaluate, print the table, write the card and the contact sheet if asked to."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    captioner, tokenizer = checkpoint.load(options.model)
    cache = BackboneCache(options.cache, options.data, captioner.encoder, options.threads)
    photos, train_photos = load_photos(options.data, options.split), load_photos(options.data, "train")
    view = cache.features([photo.file for photo in photos], 0)
    train_view = cache.features([photo.file for photo in train_photos], 0)
    captions = generate_captions(captioner, tokenizer, view, len(photos))
    baseline = _retrieve(captioner, view, photos, train_view, train_photos)
    loss = validation_loss(captioner, tokenizer, photos, view)
    results = evaluate(options.split, photos, train_photos, captions, baseline, loss, options.model)
    print(model_card.table(results.table))
    print(model_card.summary(results))
    if options.card:
        model_card.write(options.model, results)
    if options.pictures:
        sheet = photos[:: max(1, len(photos) // SHEET_PHOTOS)][:SHEET_PHOTOS]
        contact_sheet.write(options.pictures, options.data, sheet, results)


def evaluate(
    split: Split,
    photos: list[Photo],
    train_photos: list[Photo],
    captions: dict[Form, list[GeneratedCaption]],
    baseline: dict[Form, list[str]],
    loss: float,
    model: Path,
) -> Results:
    """Return every metric of every form on every set. References are all captions of a photo, whatever their form."""
    table: Table = {}
    for name in get_args(Set):
        rows = [row for row, photo in enumerate(photos) if photo.set == name]
        if not rows:
            continue
        truths = [references(photos[row]) for row in rows]
        for form, generated in captions.items():
            if form != "tags":
                table[name, form] = _scores([generated[row].text for row in rows], truths)
        for form, retrieved in baseline.items():
            table[name, f"retrieval: {form}"] = _scores([retrieved[row] for row in rows], truths)
    calibration = checkpoint.load_calibration(model)
    default = captions[DEFAULT_FORM]
    correct = [caption_metrics.subject_correct(c.text, references(p)) for c, p in zip(default, photos, strict=True)]
    confidence = [calibration.confidence(c.mean_logprob) if calibration else np.nan for c in default]
    words = {
        form: float(np.mean([len(c.text.split(",") if form == "tags" else c.text.split()) for c in captions[form]]))
        for form in FORMS
    }
    return Results(split, photos, train_photos, loss, captions, table, words, np.array(confidence), np.array(correct))


def _scores(captions: list[str], references: Sequence[Sequence[str]]) -> dict[str, tuple[float, float, float]]:
    scores = caption_metrics.score(captions, references, meteor=True) if captions else {}
    return {name: caption_metrics.interval(values) for name, values in scores.items()}


def _retrieve(
    captioner: Captioner,
    view: LowerFeatures,
    photos: list[Photo],
    train_view: LowerFeatures,
    train_photos: list[Photo],
) -> dict[Form, list[str]]:
    """Return the captions of the retrieval baseline by form."""
    pooled, train_pooled = _pooled(captioner, view, len(photos)), _pooled(captioner, train_view, len(train_photos))
    forms: tuple[Form, ...] = (DEFAULT_FORM, "plain")
    return {form: retrieval_baseline.consensus(pooled, train_pooled, train_photos, form) for form in forms}


def _pooled(captioner: Captioner, view: LowerFeatures, count: int) -> NDArray[np.float32]:
    return torch.cat([grid.mean(1) for grid in grids(captioner, view, count)]).numpy()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.json and photos/")
    parser.add_argument(
        "--model", type=Path, default=EMBEDDED_FOLDER, help="folder of the captioner (default: the embedded model)"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="default %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("build/training"), help="folder of the backbone cache")
    parser.add_argument("--card", action="store_true", help="write the model card into the model's folder")
    parser.add_argument("--pictures", type=Path, help="write 100 photos, not selected by hand, as an HTML page")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    return parser


if __name__ == "__main__":
    main()
