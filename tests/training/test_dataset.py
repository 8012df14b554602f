"""Loading and normalising captions, their nouns, and the batches that training reads."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.conftest import PHOTOS, lower_features, tiny_captioner
from training.batches import NounTargets, make_batch, unmodified
from training.dataset import HUMAN_REPEATS, Caption, Photo, index_batches, load_photos, mirror, normalise, pack, tags
from training.model import ImageBatch
from training.nouns import colors, nouns, swap_noun


def one_image() -> ImageBatch:
    return unmodified(torch.from_numpy(lower_features(1)), torch.zeros(1, 2))


def test_flickr8k_and_captions_with_quoted_lettering_are_left_out(tmp_path: Path) -> None:
    entries = [
        {"file": "a.webp", "split": "train", "source": "x (Flickr8k, native)", "captions": ["A dog"]},
        {"file": "b.webp", "split": "train", "source": "COCO", "captions": ["a cat .", 'A sign says "STOP"']},
        {"file": "c.webp", "split": "val", "source": "COCO", "captions": ["a bus"]},
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries}))
    assert load_photos(tmp_path, "train") == [
        Photo("b.webp", (Caption("A cat", "plain"), Caption("cat", "tags")), False, HUMAN_REPEATS, "human")
    ]


def test_captions_are_normalised_to_one_style() -> None:
    assert normalise(" a dog  on a sofa . ") == "A dog on a sofa"
    assert normalise("a man , a dog and a cat sit on a sofa..") == "A man, a dog and a cat sit on a sofa."


def test_tags_are_the_most_frequent_nouns_of_the_captions() -> None:
    captions = [Caption("Two dogs on a sofa", "short"), Caption("A man, a lamp and a dog", "medium")]
    assert tags(captions) == Caption("dog, sofa, man, lamp", "tags")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two women hold knives beside buses.", ["woman", "knife", "bus"]),
        ("The sheep and the children run", ["sheep", "child"]),
        ("Shiny and quickly seen", []),
    ],
)
def test_nouns_are_found_in_the_plural_too(text: str, expected: list[str]) -> None:
    assert nouns(text) == expected


def test_shades_and_compounds_are_colors() -> None:
    assert colors("A reddish-brown dog on Gray grass in a golden light") == ["red", "brown", "grey", "gold"]


def test_an_epoch_shows_each_photo_as_often_as_it_says() -> None:
    photos = [replace(PHOTOS[0], repeats=3.0), replace(PHOTOS[1], repeats=0.5)]
    batches = index_batches(photos, 1, seed=0)
    shown = [next(batches)[0] for _ in range(3500)]
    assert 2930 < shown.count(0) < 3070


def test_a_swapped_noun_keeps_its_number_and_the_article_is_adapted() -> None:
    assert swap_noun("A dog sees dogs", "dog", "elephant") == "An elephant sees elephants"
    assert swap_noun("An apple on a table", "apple", "banana") == "A banana on a table"


def test_the_caption_of_a_mirrored_photo_has_left_and_right_swapped() -> None:
    assert mirror("Left of the bright lamp, right of the door") == "Right of the bright lamp, left of the door"


def test_packed_captions_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.model.BF16", nullcontext())
    captioner, tokenizer = tiny_captioner()
    rng = random.Random(0)
    first, second = PHOTOS[0].captions[0], PHOTOS[1].captions[0]
    captioner.eval()
    with torch.inference_mode():
        alone = [captioner.losses(one_image(), pack([[c]], tokenizer, 0, rng))[0] for c in (first, second)]
        packed, _ = captioner.losses(one_image(), pack([[first, second]], tokenizer, 0, rng))
    sizes = [len(tokenizer.encode(caption.text, None)) - 1 for caption in (first, second)]
    expected = sum(loss * size for loss, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(packed, expected)


def test_a_token_sees_only_earlier_tokens_of_its_own_caption() -> None:
    captioner, tokenizer = tiny_captioner()
    captioner.eval()
    batch = pack([[PHOTOS[0].captions[0], PHOTOS[1].captions[0]]], tokenizer, 0, random.Random(0))
    with torch.inference_mode():
        features, _ = captioner.encode(one_image())
        before = captioner.logits(features, batch)
        batch.ids[0, 3] += 1
        after = captioner.logits(features, batch)
    changed = ((before - after).abs().amax(-1)[0] > 0).nonzero().flatten().tolist()
    end = int((batch.captions[0] == 0).sum())
    assert changed == list(range(3, end)), "only the rest of the changed token's own caption may change"


def test_a_swapped_noun_is_in_the_caption_and_its_pair_is_marked() -> None:
    captioner, tokenizer = tiny_captioner()
    targets = NounTargets(captioner.encoder.config, PHOTOS)
    photos, features = PHOTOS[:1] * 8, lower_features(8)
    images, batch = make_batch([0] * 8, photos, [features], tokenizer, targets, 1.0, random.Random(0))
    swapped = images.swapped_B2[:, 0] >= 0
    assert swapped.any()
    texts = [tokenizer.decode(row) for row in batch.ids.tolist()]
    for is_swapped, (old, new), text in zip(swapped.tolist(), images.swapped_B2.tolist(), texts, strict=True):
        assert (PHOTOS[0].captions[0].text == text) != is_swapped
        assert not is_swapped or (targets.words[new] in text and targets.words[old] not in text)
