"""The model card that is shipped with the weights: data, terms, figures, unpicked examples, weaknesses."""

from __future__ import annotations

from pathlib import Path

from training.dataset import Photo, Split
from training.evaluate import Figures
from training.train import Settings

EXAMPLES = 12
TEMPLATE = (Path(__file__).parent / "card.md").read_text()


def render(found: dict[Split, Figures], photos: dict[Split, list[Photo]], settings: Settings) -> str:
    """The card's Markdown. `found` and `photos` by split."""
    test = found["test"]
    rows = [
        f"| {split} | {len(photos[split])} | {f.loss:.3f} | {f.cider:.3f} | {f.subject:.0%} | "
        + " | ".join(f"{words:.1f}" for words in f.words.values())
        + " |"
        for split, f in found.items()
    ]
    step = max(1, len(photos["test"]) // EXAMPLES)
    examples = [
        f"| {photo.captions[min(1, len(photo.captions) - 1)].text} | {captions['medium']} |"
        for photo, captions in list(zip(photos["test"], test.captions, strict=True))[::step][:EXAMPLES]
    ]
    lengths = [f"- {length}: {text}" for length, text in test.captions[0].items()]
    return TEMPLATE.format(
        train=len(photos["train"]),
        written=sum(photo.written for photo in photos["train"]),
        coco=sum(not photo.written for photo in photos["train"]),
        figures="\n".join(rows),
        examples="\n".join(examples),
        lengths="\n".join(lengths),
        seed=settings.seed,
    )
