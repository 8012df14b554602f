"""Write the model card that ships with the weights: data, terms, results, unselected examples, limitations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from captioner.embedded.styles import DEFAULT_FORM
from training import confidence
from training.results import Results, Table, tag_overlap

EXAMPLES = 50
TEMPLATE = (Path(__file__).parent / "model_card.md").read_text()
PLOT = "reliability.svg"
METRICS = {
    "subject": "the caption names the everyday thing that most references name (`training/subjects.json`)",
    "object precision": "the share of the caption's things that any reference names",
    "object recall": "the share of the things in two or more references that the caption names",
    "invented person": "the caption names a person, but no reference names a person or a part of one",
    "invented animal": "the caption names a kind of animal that no reference names",
    "kind": "the caption says that the picture is a drawing if a reference does, and not otherwise",
    "wrong color": "the caption has a color that no reference supports",
    "wrong count": "the caption has a number that no reference supports",
    "doubled word": "the caption has a content word twice",
    "wrong gender": "the caption names only men where the references name only women, or the reverse",
    "wrong article": "the caption has *a* before a vowel, or *an* before a consonant",
    "unsupported words": "how many content words of the caption no reference has, endings aside",
    "acceptable": "none of these faults, the subject is right, and at most one word is unsupported; it agreed with a "
    "strict reader on 75 of 100 captions",
}


def write(folder: Path, results: Results) -> None:
    """Write README.md and the reliability diagram into the model's folder."""
    confidence.plot_reliability(results.confidence, results.correct, folder / PLOT)
    (folder / "README.md").write_text(render(results))


def render(results: Results) -> str:
    """Return the model card in Markdown."""
    step = max(1, len(results.photos) // EXAMPLES)
    examples = [
        f"| {photo.captions[0].text} | {caption.text} | {value:.0%} |"
        for photo, caption, value in list(
            zip(results.photos, results.captions[DEFAULT_FORM], results.confidence, strict=True)
        )[::step][:EXAMPLES]
    ]
    first = [f"- {form}: {generated[0].text}" for form, generated in results.captions.items()]
    return TEMPLATE.format(
        train=len(results.train_photos),
        synthetic=sum(photo.synthetic for photo in results.train_photos),
        coco=sum(not photo.synthetic for photo in results.train_photos),
        split=results.split,
        photos=len(results.photos),
        loss=results.loss,
        metrics="\n".join(f"- *{name.capitalize()}*: {meaning}." for name, meaning in METRICS.items()),
        table=table(results.table),
        summary=summary(results),
        plot=PLOT,
        forms="\n".join(first),
        examples="\n".join(examples),
    )


def table(scores: Table) -> str:
    """Return one Markdown table for each set: forms in columns, metrics in rows, with 95 % intervals in brackets."""
    parts = []
    for part in dict.fromkeys(part for part, _ in scores):
        forms = {form: found for (each, form), found in scores.items() if each == part}
        lines = [f"| {part} | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
        for name in next(iter(forms.values())):
            cells = (
                f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in (each[name] for each in forms.values())
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """Return a paragraph: words per caption by form, precision and recall of tags, calibration of confidence."""
    precision, recall = tag_overlap(results)
    words = ", ".join(f"{form} {count:.1f}" for form, count in results.words.items() if form != "tags")
    error = confidence.expected_calibration_error(results.confidence, results.correct)
    unsure = results.confidence < confidence.UNSURE_BELOW
    accuracy = {
        part: float(np.nanmean(results.correct[unsure == part])) for part in (True, False) if (unsure == part).any()
    }
    shares = ", ".join(f"{share:.0%} of the {'unsure' if part else 'sure'}" for part, share in accuracy.items())
    return (
        f"Words per caption: {words}. Tags per photo: {results.words['tags']:.1f}; {precision:.0%} of the tags are in "
        f"a reference (precision), and {recall:.0%} of the references' things are tags (recall). Confidence: expected "
        f"calibration error {error:.3f}; {unsure.mean():.0%} of the captions are marked as unsure; the main subject is "
        f"right in {shares} captions."
    )
