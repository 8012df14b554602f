"""python -m training --data DIR --out captioner/embedded: photos with captions in, a captioner's files out."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.families.concept_encoder import ConceptEncoderConfig
from training import artefact, card, evaluate
from training.dataset import Split, load_photos
from training.features import GridCache
from training.model import Captioner, Regularisation
from training.tokenizer import CaptionTokenizer
from training.train import Settings, train


def main() -> None:
    """Trains, writes the files and the model card, prints the figures."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    splits: tuple[Split, ...] = ("train", "val", "test")
    photos = {split: load_photos(options.data, split) for split in splits}
    if not photos["train"]:
        raise SystemExit(f"--data {options.data}: captions.json names no photo of split train outside Flickr8k")
    print(", ".join(f"{len(photos[split])} photos to {split}" for split in photos))
    tokenizer = CaptionTokenizer.learn(c.text for photo in photos["train"] for c in photo.captions)
    captioner = Captioner.build(
        concepts(options.data / "imagenet_words.json"),
        vocabulary=len(tokenizer),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        layers=options.layers,
        heads=8,
        dropout=options.dropout,
    )
    print(f"{sum(p.numel() for p in captioner.trained_parameters()) / 1e6:.2f} million parameters to train")
    cache = GridCache(options.cache, options.data, captioner.encoder, options.threads)

    def grids(split: Split, view: int = 0) -> NDArray[np.float16]:
        return cache.grids([photo.file for photo in photos[split]], view)

    settings = Settings(
        passes=options.passes,
        minutes=options.minutes,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        regularisation=Regularisation(dropout=options.dropout, smoothing=options.smoothing, unseen=options.unseen),
    )
    train(
        captioner,
        tokenizer,
        photos["train"],
        [grids("train", view) for view in range(options.views)],
        lambda candidate: evaluate.loss(candidate, tokenizer, photos["val"], grids("val")),
        settings,
        options.cache / "state.pt" if options.resume else None,
        lambda line: print(line, flush=True),
    )
    artefact.save(options.out, captioner, tokenizer)
    captioner, tokenizer = artefact.load(options.out)  # the figures are those of the files
    found = {split: evaluate.figures(captioner, tokenizer, photos[split], grids(split)) for split in splits[1:]}
    (options.out / "README.md").write_text(card.render(found, photos, settings))
    print(json.dumps({split: evaluate.summary(each) for split, each in found.items()}))


def concepts(path: Path) -> ConceptEncoderConfig:
    """The encoder's word list, from one everyday word for each ImageNet class."""
    by_class: list[str] = json.loads(path.read_text())
    words = sorted(set(by_class))
    return ConceptEncoderConfig(tuple(words), tuple(words.index(word) for word in by_class))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with captions.json, photos/ and imagenet_words.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the captioner's files go")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/training"), help="for what the backbone saw (1 GB a view)"
    )
    parser.add_argument("--passes", type=float, default=10, help="over the photos (10)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop by then, if the passes are not done")
    parser.add_argument(
        "--views", type=int, default=1, help="1 the whole photo, 2 also mirrored, more: random crops (1)"
    )
    parser.add_argument("--batch", type=int, default=8, help="photos a step (8)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=3, help="of the decoder (3)")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.1, help="of the labels")
    parser.add_argument("--unseen", type=float, default=0.1, help="part of the image tokens hidden in each step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep the state in the cache and go on from it")
    return parser


if __name__ == "__main__":
    main()
