"""Score captions against references: the field's metrics, and the errors that readers notice first.

CIDEr (CIDEr-D) and BLEU-4 are pycocoevalcap's, on lower-case words. METEOR is pycocoevalcap's too and needs Java.
Nouns, synonyms and function words are data (`nouns.txt`, `subjects.json`, `function_words.txt`).
Every metric has one value per photo, so that its mean has a
bootstrap interval.
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

from training.nouns import COLOR_OF, colors, nouns, singular

DATA = Path(__file__).parent
GROUPS: list[list[str]] = json.loads((DATA / "subjects.json").read_text())
SYNONYM = {word: group[0] for group in GROUPS for word in group}
PERSON = GROUPS[0][0]
ANIMALS = frozenset(group[0] for group in GROUPS[1:15])
BODY_PART = re.compile(r"\b(arms?|ear|eyes?|face|feet|fingers?|foot|hands?|head|legs?|someone)\b")
DRAWING = re.compile(r"\b(cartoon|drawing|illustration|painting|sketch)\b")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "dozen")
GROUPS_OF_PEOPLE = frozenset({"people", "couple", "family", "crowd", "group", "friends"})
COLLECTION = re.compile(r"\b(?:couple|crowd|family|group) of\b")  # of what follows, which need not be people
MALE = frozenset(["man", "men", "boy", "boys", "guy", "guys", "groom"])
FEMALE = frozenset(["woman", "women", "girl", "girls", "lady", "ladies", "bride"])
# The sound of the next word decides, so spelling has exceptions.
WRONG_ARTICLE = re.compile(
    r"\ba (?=[aeio]|u(?!ni|se|su|te|ti|k))(?!one\b|once\b|eu|ewe)|\ban (?![aeiou]|hour|honest|x-)"
)
BETWEEN_COLOR_AND_THING = 4  # words at most
TOLERATED_WORDS = 1  # with it, `acceptable` agreed with the eye on 75 of 100 captions
FUNCTION_WORDS = frozenset((DATA / "function_words.txt").read_text().split())
RESAMPLES = 2000
Scores = NDArray[np.float64]  # one per photo; NaN where the metric is undefined


def things(text: str) -> list[str]:
    """Return the things that a text names, each once, in order; synonyms have one name."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", COLLECTION.sub("", text.lower()))
    found = [
        SYNONYM.get(word) or SYNONYM.get(word.rpartition("-")[2]) or next(iter(nouns(word)), None) for word in words
    ]
    return list(dict.fromkeys(thing for thing in found if thing is not None))


def main_subject(references: Sequence[str]) -> str | None:
    """Return the everyday thing that most references name (the first named, on a tie), or None."""
    named = [[thing for thing in things(text) if thing in SYNONYM.values()] for text in references]
    votes = Counter(thing for each in named for thing in each)
    order = [thing for each in named for thing in each]
    return min(votes, key=lambda thing: (-votes[thing], order.index(thing))) if votes else None


def subject_correct(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption names the main subject, else 0; NaN if the references have none."""
    subject = main_subject(references)
    return float("nan") if subject is None else float(subject in things(caption))


def object_precision(caption: str, references: Sequence[str]) -> float:
    """Return the share of the caption's things that any reference names; NaN if the caption names none."""
    named = things(caption)
    expected = {thing for text in references for thing in things(text)}
    return sum(thing in expected for thing in named) / len(named) if named else float("nan")


def object_recall(caption: str, references: Sequence[str]) -> float:
    """Return the share of the things in two or more references that the caption names; NaN if there are none."""
    votes = Counter(thing for text in references for thing in things(text))
    expected = [thing for thing, count in votes.items() if count > 1]
    named = things(caption)
    return sum(thing in named for thing in expected) / len(expected) if expected else float("nan")


def invented_person(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption names a person and no reference names a person or a part of one."""
    real = any(PERSON in things(text) or BODY_PART.search(text.lower()) for text in references)
    return float(PERSON in things(caption) and not real)


def invented_animal(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption names a kind of animal that no reference names."""
    real = {thing for text in references for thing in things(text)}
    return float(bool(ANIMALS & set(things(caption)) - real))


def kind_right(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption calls the picture a drawing and a reference does too, or neither does; else 0."""
    drawn = any(DRAWING.search(text.lower()) for text in references)
    return float(drawn == bool(DRAWING.search(caption.lower())))


def wrong_color(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption names a color that no reference supports, else 0.

    Every color must be in a reference. Of a thing's colors, one must be a color that a reference gives it, if any
    reference gives it one.
    """
    if set(colors(caption)) - {color for text in references for color in colors(text)}:
        return 1.0
    expected: dict[str, set[str]] = {}
    for text in references:
        for thing, found in colored_things(text).items():
            expected.setdefault(thing, set()).update(found)
    return float(any(not found & expected.get(thing, found) for thing, found in colored_things(caption).items()))


def colored_things(text: str) -> dict[str, set[str]]:
    """Return the things that have colors in front of them, and these colors."""
    words = re.findall("[a-z]+", text.lower())
    found: dict[str, set[str]] = {}
    for place, word in enumerate(words):
        if (color := COLOR_OF.get(word)) is not None:
            following = words[place + 1 : place + 1 + BETWEEN_COLOR_AND_THING]
            named = (next(iter(things(each)), None) for each in following if each not in COLOR_OF)
            if (thing := next((each for each in named if each is not None), None)) is not None:
                found.setdefault(thing, set()).add(color)
    return found


def wrong_count(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption has a number that no reference has, or one thing where all say several or the reverse."""
    words = [re.findall("[a-z]+", text.lower()) for text in references]
    numbers = {word for text in words for word in text}
    if any(word in NUMBERS and word not in numbers for word in re.findall("[a-z]+", caption.lower())):
        return 1.0
    expected: dict[str, set[bool]] = {}
    for text in references:
        for thing, several in _counted(text):
            expected.setdefault(thing, set()).add(several)
    return float(any(several not in expected.get(thing, {several}) for thing, several in _counted(caption)))


def _counted(text: str) -> list[tuple[str, bool]]:
    """Return the things of a text that words after an article or a number name, and whether they are several."""
    found = []
    for word in re.findall("[a-z]+(?:-[a-z]+)?", COLLECTION.sub("", text.lower())):
        if word == "sheep" or (thing := next(iter(things(word)), None)) is None:
            continue
        found.append((thing, word in GROUPS_OF_PEOPLE or (singular(word) or word) != word))
    return found


def wrong_gender(caption: str, references: Sequence[str]) -> float:
    """Return 1 if the caption names only men or only women, and the references only the others; else 0."""
    named, expected = set(caption.lower().split()), {word for text in references for word in lower_words(text).split()}
    male, female = bool(expected & MALE), bool(expected & FEMALE)
    return float((male and not female and bool(named & FEMALE)) or (female and not male and bool(named & MALE)))


def wrong_article(caption: str, references: Sequence[str] = ()) -> float:
    """Return 1 if the caption has "a" before a vowel or "an" before a consonant, else 0."""
    return float(bool(WRONG_ARTICLE.search(caption.lower())))


def unsupported_words(caption: str, references: Sequence[str]) -> float:
    """Return how many content words of the caption no reference has, endings aside."""
    expected = {stem for text in references for stem in _stems(text)}
    return float(sum(stem not in expected for stem in _stems(caption)))


def acceptable(caption: str, references: Sequence[str]) -> float:
    """Return 1 if a strict reader who knows only the references finds nothing wrong, else 0.

    The subject, colors, counts and genders are right, no word is doubled, and references support all content words but
    TOLERATED_WORDS: they do not name everything that can be seen.
    """
    faults = (wrong_color, wrong_count, wrong_gender, wrong_article, doubled_word, invented_person, invented_animal)
    right = subject_correct(caption, references) != 0 and kind_right(caption, references) == 1
    supported = unsupported_words(caption, references) <= TOLERATED_WORDS
    return float(right and supported and not any(fault(caption, references) for fault in faults))


def _stems(text: str) -> list[str]:
    words = [word for word in re.findall("[a-z]+", text.lower()) if word not in FUNCTION_WORDS]
    named = (SYNONYM.get(word) or COLOR_OF.get(word) or word for word in words)
    return [re.sub(r"(.{3,}?)(?:ing|ed|es|s|e)$", r"\1", word) for word in named]


def doubled_word(caption: str, references: Sequence[str] = ()) -> float:
    """Return 1 if the caption has a content word twice (colors aside), or one word on both sides of "and" or a gap."""
    words = re.findall("[a-z]+", caption.lower())
    content = [word for word in words if word not in FUNCTION_WORDS and word not in COLOR_OF]
    in_a_row = re.search(r"\b([a-z]+) (?:and )?\1\b", " ".join(words))
    return float(bool(in_a_row) or len(set(content)) < len(content))


PER_PHOTO: dict[str, Callable[[str, Sequence[str]], float]] = {
    "subject": subject_correct,
    "object precision": object_precision,
    "object recall": object_recall,
    "invented person": invented_person,
    "invented animal": invented_animal,
    "kind": kind_right,
    "wrong color": wrong_color,
    "wrong count": wrong_count,
    "doubled word": doubled_word,
    "wrong gender": wrong_gender,
    "wrong article": wrong_article,
    "unsupported words": unsupported_words,
    "acceptable": acceptable,
}


def score(captions: Sequence[str], references: Sequence[Sequence[str]], meteor: bool = False) -> dict[str, Scores]:
    """Return each metric's values in the order of `captions`. CIDEr's document frequencies are of `references`."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    hypotheses = {number: [lower_words(caption)] for number, caption in enumerate(captions)}
    truths = {number: [lower_words(text) for text in texts] for number, texts in enumerate(references)}
    scores = {"CIDEr": np.asarray(Cider().compute_score(truths, hypotheses)[1])}
    scores["BLEU-4"] = np.asarray(Bleu(4).compute_score(truths, hypotheses, verbose=0)[1][3])
    if meteor and shutil.which("java"):
        from pycocoevalcap.meteor.meteor import Meteor

        scores["METEOR"] = np.asarray(Meteor().compute_score(truths, hypotheses)[1])
    pairs = list(zip(captions, references, strict=True))
    return scores | {name: np.asarray([metric(*pair) for pair in pairs]) for name, metric in PER_PHOTO.items()}


def lower_words(text: str) -> str:
    """Return the lower-case words of a text, one space between them: what CIDEr, BLEU and METEOR compare."""
    return " ".join(re.findall(r"[a-z0-9]+(?:[-'][a-z0-9]+)*", text.lower()))


def interval(scores: Scores, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean and its 95 % bootstrap interval over photos."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return (float("nan"),) * 3
    means = np.random.default_rng(seed).choice(known, (RESAMPLES, len(known))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)
