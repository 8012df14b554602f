"""What a captioner's captions are worth: loss, subject named, CIDEr-D, words for each length.

Subjects and synonyms are data (`subjects.json`): groups of words for one everyday thing.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from captioner.embedded import LENGTHS, Length
from training.dataset import Photo, pack
from training.model import Captioner
from training.tokenizer import CaptionTokenizer
from training.train import Grids

BATCH = 32
NGRAMS = 4
SIGMA_WORDS = 6.0  # of CIDEr-D's penalty for another length
GROUPS: list[list[str]] = json.loads((Path(__file__).parent / "subjects.json").read_text())
SUBJECT = {word: group[0] for group in GROUPS for word in group}


@dataclass(frozen=True)
class Figures:
    """One split's figures. `subject` is the share of photos whose medium caption names the main subject."""

    loss: float  # nats a token
    subject: float
    cider: float  # CIDEr-D of the medium captions, ×1, document frequencies of this split
    words: dict[Length, float]  # mean words a caption
    captions: list[dict[Length, str]]  # of each photo


def loss(captioner: Captioner, tokenizer: CaptionTokenizer, photos: list[Photo], grids: Grids) -> float:
    """Mean cross entropy a token of all captions, in nats, with their length tokens."""
    captioner.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(photos), BATCH):
            rows = [list(photo.captions[:3]) for photo in photos[start : start + BATCH]]
            batch = pack(rows, tokenizer, 0, random.Random(0))
            learnt = int((batch.labels >= 0).sum())
            total += learnt * captioner.loss(torch.from_numpy(grids[start : start + BATCH]).float(), batch).item()
            tokens += learnt
    return total / tokens


def figures(captioner: Captioner, tokenizer: CaptionTokenizer, photos: list[Photo], grids: Grids) -> Figures:
    """All figures of one split, with greedy captions as the server writes them."""
    captions = [
        dict(zip(LENGTHS, texts, strict=True))
        for texts in zip(*(write(captioner, tokenizer, grids, len(photos), length) for length in LENGTHS), strict=True)
    ]
    medium = [caption["medium"] for caption in captions]
    references = [[caption.text for caption in photo.captions] for photo in photos]
    return Figures(
        loss(captioner, tokenizer, photos, grids),
        subject_match(medium, references),
        cider(medium, references),
        {length: mean(len(caption[length].split()) for caption in captions) for length in LENGTHS},
        captions,
    )


def write(captioner: Captioner, tokenizer: CaptionTokenizer, grids: Grids, count: int, length: Length) -> list[str]:
    """Greedy captions of the first `count` grids."""
    captioner.eval()
    texts: list[str] = []
    for start in range(0, count, BATCH):
        part = torch.from_numpy(grids[start : min(start + BATCH, count)]).float()
        texts += [tokenizer.decode(ids) for ids in captioner.greedy(part, tokenizer.prompt(length))]
    return texts


def subject_match(captions: list[str], references: list[list[str]]) -> float:
    """Of the photos whose first reference names a known subject, the share whose caption names the first one too."""
    hits = [
        subjects[0] in _subjects(caption)
        for caption, texts in zip(captions, references, strict=True)
        if (subjects := _subjects(texts[0]))
    ]
    return mean(hits) if hits else math.nan


def cider(captions: list[str], references: list[list[str]]) -> float:
    """CIDEr-D: tf-idf weighted n-grams shared with the references, clipped, penalised for another length; 0 to 10."""
    counts = [[_ngrams(text) for text in texts] for texts in references]
    documents = Counter(gram for texts in counts for gram in set().union(*texts))
    rarity = {gram: math.log(len(references) / max(1, seen)) for gram, seen in documents.items()}
    most = math.log(len(references))

    def weigh(grams: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(NGRAMS)]
        for gram, count in grams.items():
            vectors[len(gram) - 1][gram] = count * rarity.get(gram, most)
        return vectors

    def norm(vector: dict[tuple[str, ...], float]) -> float:
        return math.sqrt(sum(value * value for value in vector.values()))

    scores = []
    for caption, texts in zip(captions, counts, strict=True):
        own_grams = _ngrams(caption)
        own, own_words = weigh(own_grams), _length(own_grams)
        for grams in texts:
            penalty = math.exp(-((own_words - _length(grams)) ** 2) / (2 * SIGMA_WORDS**2))
            for mine, theirs in zip(own, weigh(grams), strict=True):
                shared = sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine.keys() & theirs)
                scale = norm(mine) * norm(theirs)
                scores.append(penalty * shared / scale / len(texts) / NGRAMS if scale else 0.0)
    return 10 * sum(scores) / len(captions)


def _subjects(text: str) -> list[str]:
    return [SUBJECT[word] for word in re.findall(r"[a-z]+", text.lower()) if word in SUBJECT]


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return Counter(tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1))


def _length(grams: Counter[tuple[str, ...]]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def summary(found: Figures) -> dict[str, float]:
    """The figures without the captions, rounded, for one line of JSON."""
    words = {f"{length}_words": round(words, 1) for length, words in found.words.items()}
    return {"loss": round(found.loss, 3), "subject": round(found.subject, 3), "cider": round(found.cider, 3), **words}
