"""python -m training --data DIR --out captioner/embedded: photos with captions in, a captioner's files out."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.families.concept_encoder import ConceptEncoderConfig
from training import caption_metrics, checkpoint, confidence, validation
from training.backbone_cache import LowerCache
from training.dataset import Photo, Split, load_photos, taught, texts
from training.generate import write
from training.model import Captioner, Regularisation
from training.nouns import nouns
from training.tokenizer import CaptionTokenizer
from training.train import TrainingConfig, train

LEAST = 8  # photos that name a word, for it to have a place in the head that tells a caption's words


def main() -> None:
    """Trains, writes the files and the model card, prints the figures."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    splits: tuple[Split, ...] = ("train", "val", "test")
    photos = {split: load_photos(options.data, split, options.flickr8k and split == "train") for split in splits}
    if options.taught is not None:
        photos["train"] = taught(photos["train"], options.taught)
    if not photos["train"]:
        raise SystemExit(f"--data {options.data}: captions.json names no photo of split train outside Flickr8k")
    print(", ".join(f"{len(photos[split])} photos to {split}" for split in photos))
    if options.start:
        captioner, tokenizer = checkpoint.load(options.start)
    else:
        captioner, tokenizer = _new(options, photos["train"])
    print(f"{sum(p.numel() for p in captioner.trained_parameters()) / 1e6:.2f} million parameters to train")
    cache = LowerCache(options.cache, options.data, captioner.encoder, options.threads)

    def view(split: Split, number: int = 0) -> NDArray[np.float16]:
        return cache.view([photo.file for photo in photos[split]], number)

    settings = TrainingConfig(
        passes=options.passes,
        minutes=options.minutes,
        batch=options.batch,
        learning_rate=options.learning_rate,
        backbone_rate=options.backbone_rate,
        exchange=options.exchange,
        plain=options.plain,
        seed=options.seed,
        regularisation=Regularisation(
            dropout=options.dropout,
            smoothing=options.smoothing,
            unseen=options.unseen,
            unseen_concepts=options.unseen_concepts,
            naming=options.naming,
        ),
    )
    train(
        captioner,
        tokenizer,
        photos["train"],
        [view("train", number) for number in range(options.views)],
        lambda candidate: validation.loss(candidate, tokenizer, photos["val"], view("val")),
        settings,
        options.cache / "state.pt" if options.resume else None,
        lambda line: print(line, flush=True),
    )
    checkpoint.save(options.out, captioner, tokenizer)
    calibrate(options.out, photos["val"], view("val"))


def _new(options: argparse.Namespace, photos: list[Photo]) -> tuple[Captioner, CaptionTokenizer]:
    tokenizer = CaptionTokenizer.learn(c.text for photo in photos for c in photo.captions)
    captioner = Captioner.build(
        concepts(options.data / "imagenet_words.json", photos),
        vocabulary=len(tokenizer),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        layers=options.layers,
        heads=8,
        dropout=options.dropout,
    )
    return captioner, tokenizer


def calibrate(folder: Path, photos: list[Photo], view: NDArray[np.float16]) -> None:
    """Fits the confidence of a saved captioner to its medium captions of photos it was not trained on."""
    captioner, tokenizer = checkpoint.load(folder)
    written = write(captioner, tokenizer, view, len(photos), ("medium",))["medium"]
    right = [caption_metrics.subject_right(c.text, texts(photo)) for c, photo in zip(written, photos, strict=True)]
    checkpoint.calibrate(folder, confidence.fit(np.array([c.mean_logprob for c in written]), np.array(right)))


def concepts(path: Path, photos: list[Photo]) -> ConceptEncoderConfig:
    """The encoder's words: one everyday word for each ImageNet class, and what enough of the captions name."""
    by_class: list[str] = json.loads(path.read_text())
    seen = Counter(word for photo in photos for word in {w for c in photo.captions for w in nouns(c.text)})
    named = sorted(word for word, count in seen.items() if count >= LEAST)
    words = sorted({*by_class, *named})
    index = {word: number for number, word in enumerate(words)}
    return ConceptEncoderConfig(
        tuple(words), tuple(index[word] for word in by_class), tuple(index[word] for word in named)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with captions.json, photos/ and imagenet_words.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the captioner's files go")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/training"), help="for what the backbone saw (150 MB a view)"
    )
    parser.add_argument("--start", type=Path, help="a trained captioner's files to go on from, at a new learning rate")
    parser.add_argument("--passes", type=float, default=17, help="over the photos (17)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop by then, if the passes are not done")
    parser.add_argument(
        "--views", type=int, default=10, help="1 the whole photo, 2 also mirrored, more: random crops (10)"
    )
    parser.add_argument("--batch", type=int, default=16, help="photos a step (16)")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--layers", type=int, default=3, help="of the decoder (3)")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.1, help="of the labels")
    parser.add_argument("--unseen", type=float, default=0.1, help="part of the image tokens hidden in each step")
    parser.add_argument("--unseen-concepts", type=float, default=0.3, help="part of the concepts hidden in each step")
    parser.add_argument("--naming", type=float, default=0.1, help="weight of the loss of the head that tells words")
    parser.add_argument("--backbone-rate", type=float, default=0.1, help="of the learning rate; 0 leaves it frozen")
    parser.add_argument("--exchange", type=float, default=0.1, help="part of the photos with one thing for another")
    parser.add_argument("--plain", type=int, default=3, help="times a pass shows photos with people's captions only")
    parser.add_argument("--taught", type=Path, help="a teacher's captions, as llava.py writes them")
    parser.add_argument("--flickr8k", action="store_true", help="to measure only: its terms forbid free use")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep the state in the cache and go on from it")
    return parser


if __name__ == "__main__":
    main()
