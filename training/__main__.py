"""Train a captioner on photos with captions and save its files.

    python -m training --data DIR --out captioner/embedded

The run ends after --passes epochs or after --minutes, whichever comes first.
"""

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
from training import checkpoint
from training.backbone_cache import BackboneCache
from training.confidence import calibrate
from training.dataset import Photo, Split, load_photos
from training.model import Captioner, Regularisation
from training.nouns import colors, nouns
from training.tokenizer import CaptionTokenizer
from training.train import TrainingConfig, train
from training.validation import validation_loss

MIN_PHOTOS_PER_WORD = 8  # for a noun or color to get an output of the encoder's caption head
CONCEPTS = 10  # words of each head that the decoder sees


def main() -> None:
    """Train, save the captioner, and calibrate its confidence on the validation photos."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    splits: tuple[Split, ...] = ("train", "val", "test")
    photos = {split: load_photos(options.data, split) for split in splits}
    if not photos["train"]:
        raise SystemExit(f"--data {options.data}: captions.json has no photo of split train outside Flickr8k")
    print(", ".join(f"{split}: {len(photos[split])} photos" for split in photos))
    if options.start:
        captioner, tokenizer = checkpoint.load(options.start)
    else:
        captioner, tokenizer = _new(options, photos["train"])
    print(f"{sum(p.numel() for p in captioner.trained_parameters()) / 1e6:.2f} million parameters to train")
    cache = BackboneCache(options.cache, options.data, captioner.encoder, options.threads)

    def view(split: Split, number: int = 0) -> NDArray[np.float16]:
        return cache.features([photo.file for photo in photos[split]], number)

    config = TrainingConfig(
        epochs=options.passes,
        minutes=options.minutes,
        batch=options.batch,
        learning_rate=options.learning_rate,
        backbone_rate=options.backbone_rate,
        swap_share=options.exchange,
        seed=options.seed,
        regularisation=Regularisation(
            dropout=options.dropout,
            label_smoothing=options.smoothing,
            image_token_dropout=options.unseen,
            concept_token_dropout=options.unseen_concepts,
            noun_loss_weight=options.naming,
        ),
    )
    train(
        captioner,
        tokenizer,
        photos["train"],
        [view("train", number) for number in range(options.views)],
        lambda candidate: validation_loss(candidate, tokenizer, photos["val"], view("val")),
        config,
        options.cache / "state.pt" if options.resume else None,
        lambda line: print(line, flush=True),
    )
    checkpoint.save(options.out, captioner, tokenizer)
    calibrate(options.out, photos["val"], view("val"))


def _new(options: argparse.Namespace, photos: list[Photo]) -> tuple[Captioner, CaptionTokenizer]:
    tokenizer = CaptionTokenizer.train(c.text for photo in photos for c in photo.captions)
    captioner = Captioner.build(
        concept_config(options.data / "imagenet_words.json", photos, options.width),
        vocabulary_size=len(tokenizer),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        layers=options.layers,
        heads=8,
        dropout=options.dropout,
    )
    return captioner, tokenizer


def concept_config(path: Path, photos: list[Photo], width: int) -> ConceptEncoderConfig:
    """Return the encoder's words: one per ImageNet class (`path`), and the captions' frequent nouns and colors."""
    by_class: list[str] = json.loads(path.read_text())
    texts = (" ".join(caption.text for caption in photo.captions) for photo in photos)
    counts = Counter(word for text in texts for word in nouns(text) + colors(text))
    frequent = sorted(word for word, count in counts.items() if count >= MIN_PHOTOS_PER_WORD)
    words = sorted({*by_class, *frequent})
    index = {word: number for number, word in enumerate(words)}
    return ConceptEncoderConfig(
        tuple(words),
        tuple(index[word] for word in by_class),
        tuple(index[word] for word in frequent),
        width=width,
        concepts=CONCEPTS,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(name: str, default: float, text: str) -> None:
        parser.add_argument(name, type=type(default), default=default, help=f"{text} (default %(default)s)")

    data = "folder with captions.json, photos/ and imagenet_words.json"
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, required=True, help="folder for the captioner's files")
    cache = "folder of the backbone cache, 370 MB per view (default %(default)s)"
    parser.add_argument("--cache", type=Path, default=Path("build/training"), help=cache)
    parser.add_argument("--start", type=Path, help="folder of a trained captioner to start from")
    number("--passes", 12.0, "epochs")
    number("--minutes", math.inf, "longest duration")
    number("--views", 6, "augmented views per photo: 1 as it is, 2 also mirrored, more add random crops")
    number("--batch", 32, "photos per step")
    number("--learning-rate", 1.5e-3, "peak learning rate")
    number("--backbone-rate", 0.1, "learning rate of the backbone's last blocks, as a share; 0 freezes them")
    number("--layers", 4, "layers of the decoder")
    number("--width", 320, "width of the decoder and the image's features")
    number("--dropout", 0.15, "dropout of the decoder")
    number("--smoothing", 0.1, "label smoothing")
    number("--unseen", 0.1, "share of the image tokens hidden in each step")
    number("--unseen-concepts", 0.3, "share of the concept tokens hidden in each step")
    number("--naming", 0.1, "weight of the noun head's loss")
    number("--exchange", 0.1, "share of the photos with one noun swapped for another in concepts and captions")
    number("--threads", 2, "CPU threads")
    number("--seed", 0, "random seed")
    parser.add_argument("--resume", action="store_true", help="save the state in the cache and resume from it")
    return parser


if __name__ == "__main__":
    main()
