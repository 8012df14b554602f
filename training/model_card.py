"""The model card that is shipped with the weights: data, terms, figures, unpicked examples, weaknesses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training import confidence
from training.figures import Figures, Table, tag_overlap

EXAMPLES = 50
TEMPLATE = (Path(__file__).parent / "model_card.md").read_text()
PLOT = "reliability.svg"


def write(folder: Path, figures: Figures) -> None:
    """Writes README.md and the reliability diagram into the model's folder."""
    confidence.plot(figures.confidence, figures.right, folder / PLOT)
    (folder / "README.md").write_text(render(figures))


def render(figures: Figures) -> str:
    """The card's Markdown."""
    step = max(1, len(figures.photos) // EXAMPLES)
    examples = [
        f"| {photo.captions[min(1, len(photo.captions) - 1)].text} | {medium.text} | {sure:.0%} |"
        for photo, medium, sure in list(
            zip(figures.photos, figures.captions["medium"], figures.confidence, strict=True)
        )[::step][:EXAMPLES]
    ]
    first = [f"- {form}: {written[0].text}" for form, written in figures.captions.items()]
    return TEMPLATE.format(
        train=len(figures.known),
        written=sum(photo.written for photo in figures.known),
        coco=sum(not photo.written for photo in figures.known),
        split=figures.split,
        photos=len(figures.photos),
        loss=figures.loss,
        figures=table(figures.table),
        sureness=sureness(figures),
        plot=PLOT,
        forms="\n".join(first),
        examples="\n".join(examples),
    )


def table(found: Table) -> str:
    """Each score of each set and form, its 95 % interval in brackets."""
    names = list(next(iter(found.values())))
    lines = [f"| set | form | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for (part, form), scores in found.items():
        cells = (f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in (scores[name] for name in names))
        lines.append(f"| {part} | {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sureness(figures: Figures) -> str:
    """Words for each form, what the tags are worth, and what the confidence is worth."""
    precision, recall = tag_overlap(figures)
    words = ", ".join(f"{form} {count:.1f}" for form, count in figures.words.items() if form != "tags")
    error = confidence.expected_error(figures.confidence, figures.right)
    unsure = figures.confidence < confidence.UNSURE_BELOW
    right_of = {
        part: float(np.nanmean(figures.right[unsure == part])) for part in (True, False) if (unsure == part).any()
    }
    shares = ", ".join(f"{'unsure' if part else 'sure'} {share:.0%}" for part, share in right_of.items())
    return (
        f"Words a caption: {words}; tags a photo: {figures.words['tags']:.1f}, of which {precision:.0%} are named in a "
        f"reference, and {recall:.0%} of what references name is among them. Confidence: expected calibration error "
        f"{error:.3f}; {unsure.mean():.0%} of the captions are marked as unsure; main subject right of {shares}."
    )
