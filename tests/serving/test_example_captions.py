"""Captions of the shipped photos by the embedded model: where they end, and what they do not say twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.examples import FOLDER
from captioner.serving.in_process import InProcessModel

PHOTOS = [path.read_bytes() for path in sorted(FOLDER.glob("*.jpg"))]
NEED_ANOTHER = ("a", "an", "the", "and", "or", "of", "in", "on", "with", "to")


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[InProcessModel]:
    made = InProcessModel(repository, in_flight=4)
    yield made
    made.close()


@pytest.mark.parametrize("length", ["short", "medium", "long"])
def test_no_clause_of_four_words_comes_twice(model: InProcessModel, length: str) -> None:
    for photo in PHOTOS:
        text = model.caption(photo, {"length": length}).text.casefold()
        words = re.findall(r"\w+", text)
        for clause in re.split(r"[,;.]\s*(?:and )?", text):
            said = " ".join(re.findall(r"\w+", clause))
            assert len(said.split()) < 4 or f" {' '.join(words)} ".count(f" {said} ") == 1, text


@pytest.mark.parametrize("limit", [{"max_characters": limit} for limit in (20, 30, 40, 60)] + [{"max_tokens": 9}])
def test_a_limit_never_ends_a_caption_on_a_word_that_needs_another(
    model: InProcessModel, limit: dict[str, int]
) -> None:
    for photo in PHOTOS:
        caption = model.caption(photo, {"length": "long", **limit})
        assert caption.text.split()[-1].strip(",") not in NEED_ANOTHER, caption.text
        assert caption.details.finish_reason == "length"


def test_a_blank_at_the_end_of_a_prompt_changes_no_word(model: InProcessModel) -> None:
    for photo in PHOTOS:
        assert (
            model.caption(photo, {"prompt": "A photo of "}).text == model.caption(photo, {"prompt": "A photo of"}).text
        )


def test_a_caption_that_ends_before_a_repeated_clause_says_so(model: InProcessModel) -> None:
    cat = (FOLDER / "cat.jpg").read_bytes()
    ended = model.caption(cat, {"length": "long"})
    whole = model.caption(cat, {"length": "long", "repetition_guard": False})
    if whole.text != ended.text:  # another model may repeat nothing here
        assert ended.details.finish_reason == "repetition" and whole.details.finish_reason == "stop"
        assert whole.text.startswith(ended.text.rstrip("."))
