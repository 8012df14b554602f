"""What captions are worth, by their references: the field's own scores and what a reader minds first.

CIDEr (CIDEr-D) and BLEU-4 are pycocoevalcap's, over plain lower-case words; METEOR is its too and runs where Java does.
Things and their synonyms are data (`subjects.json`, `nouns.txt`). Scores are of one photo each, so that their means
have intervals.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.nouns import nouns

GROUPS: list[list[str]] = json.loads((Path(__file__).parent / "subjects.json").read_text())
SYNONYM = {word: group[0] for group in GROUPS for word in group}
PERSON = GROUPS[0][0]
ANIMALS = frozenset(group[0] for group in GROUPS[1:15])
BODY = frozenset(
    [
        "arm",
        "arms",
        "ear",
        "eye",
        "eyes",
        "face",
        "feet",
        "finger",
        "fingers",
        "foot",
        "hand",
        "hands",
        "head",
        "leg",
        "legs",
        "someone",
    ]
)
RESAMPLES = 2000
Scores = NDArray[np.float64]  # one a photo; NaN where a photo says nothing


def things(text: str) -> list[str]:
    """What a text names, each once, in its order; synonyms by one name."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())
    found = [
        SYNONYM.get(word) or SYNONYM.get(word.rpartition("-")[2]) or next(iter(nouns(word)), None) for word in words
    ]
    return list(dict.fromkeys(thing for thing in found if thing is not None))


def main_subject(references: Sequence[str]) -> str | None:
    """The everyday thing that most references name; of several the one named first. None where none is named."""
    named = [[thing for thing in things(text) if thing in SYNONYM.values()] for text in references]
    votes = Counter(thing for each in named for thing in each)
    order = [thing for each in named for thing in each]
    return min(votes, key=lambda thing: (-votes[thing], order.index(thing))) if votes else None


def subject_right(caption: str, references: Sequence[str]) -> float:
    """1 where the caption names the main subject, 0 where not, NaN where the references have none."""
    subject = main_subject(references)
    return float("nan") if subject is None else float(subject in things(caption))


def object_precision(caption: str, references: Sequence[str]) -> float:
    """Of the things a caption names, the part that any reference names."""
    named = things(caption)
    seen = {thing for text in references for thing in things(text)}
    return sum(thing in seen for thing in named) / len(named) if named else float("nan")


def object_recall(caption: str, references: Sequence[str]) -> float:
    """Of the things that two references or more name, the part that the caption names."""
    votes = Counter(thing for text in references for thing in things(text))
    wanted = [thing for thing, count in votes.items() if count > 1]
    named = things(caption)
    return sum(thing in named for thing in wanted) / len(wanted) if wanted else float("nan")


def invented_person(caption: str, references: Sequence[str]) -> float:
    """1 where the caption has a person and no reference has one or a part of one."""
    real = any(PERSON in things(text) or BODY & set(re.findall(r"[a-z]+", text.lower())) for text in references)
    return float(PERSON in things(caption) and not real)


def invented_animal(caption: str, references: Sequence[str]) -> float:
    """1 where the caption has an animal of a kind that no reference names."""
    real = {thing for text in references for thing in things(text)}
    return float(bool(ANIMALS & set(things(caption)) - real))


BY_PHOTO: dict[str, Callable[[str, Sequence[str]], float]] = {
    "subject": subject_right,
    "object precision": object_precision,
    "object recall": object_recall,
    "invented person": invented_person,
    "invented animal": invented_animal,
}


def score(captions: Sequence[str], references: Sequence[Sequence[str]], meteor: bool = False) -> dict[str, Scores]:
    """Every score's values, one a photo, in the order of `captions`. CIDEr's rarities are those of `references`."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    written = {number: [plain(caption)] for number, caption in enumerate(captions)}
    wanted = {number: [plain(text) for text in texts] for number, texts in enumerate(references)}
    found = {"CIDEr": np.asarray(Cider().compute_score(wanted, written)[1])}
    found["BLEU-4"] = np.asarray(Bleu(4).compute_score(wanted, written, verbose=0)[1][3])
    if meteor and shutil.which("java"):
        from pycocoevalcap.meteor.meteor import Meteor

        found["METEOR"] = np.asarray(Meteor().compute_score(wanted, written)[1])
    pairs = list(zip(captions, references, strict=True))
    return found | {name: np.asarray([rate(*pair) for pair in pairs]) for name, rate in BY_PHOTO.items()}


def plain(text: str) -> str:
    """Lower-case words, one space between them: what the scores compare."""
    return " ".join(re.findall(r"[a-z0-9]+(?:[-'][a-z0-9]+)*", text.lower()))


def interval(scores: Scores, seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval over photos."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return (float("nan"),) * 3
    means = np.random.default_rng(seed).choice(known, (RESAMPLES, len(known))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)
