"""The embedded model's files are whole and small, and the loop that makes them learns."""

from __future__ import annotations

import json
import random
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from captioner.embedded import BOS, EMBEDDED_FOLDER, EOS, FORMS, PAD, weights
from captioner.errors import ModelUnsupported
from captioner.families.concept_encoder import CLASSES, LOWER_SHAPE, ConceptEncoder, ConceptEncoderConfig
from training import average, caption_metrics, checkpoint, confidence
from training.batches import Words, make_batch, plain_look
from training.dataset import Caption, Photo, load_photos, mirror, pack, tags, taught, tidy
from training.generate import write
from training.model import Captioner, Look, Regularisation
from training.nouns import exchange, nouns
from training.self_critical import Reward, tag_reward
from training.tokenizer import CaptionTokenizer
from training.train import TrainingConfig, train
from training.validation import loss

MIB = 2**20
TEXTS = ("A brown dog on a red sofa", "Two boats on a lake", "A bowl of green apples", "A man rides a white horse")
PHOTOS = [Photo(f"{i}.webp", (Caption(text, "short"),), written=True) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def embedded() -> tuple[Captioner, CaptionTokenizer]:
    return checkpoint.load(EMBEDDED_FOLDER)


def tiny_captioner() -> tuple[Captioner, CaptionTokenizer]:
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.learn(TEXTS, vocabulary=300)
    words = ConceptEncoderConfig(("dog", "boat", "apple"), (0, 1, 2, 0) * (CLASSES // 4), (0, 1), width=32, concepts=2)
    captioner = Captioner.build(
        words, len(tokenizer), tokenizer.bos, tokenizer.eos, tokenizer.pad, layers=1, heads=2, dropout=0.0
    )
    return captioner, tokenizer


def lower(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What the lower blocks saw in no photo, apart enough to be told apart."""
    torch.manual_seed(0)
    return (torch.randn(count, *LOWER_SHAPE) * torch.arange(1, count + 1)[:, None, None, None]).numpy()


def look(count: int) -> Look:
    return plain_look(torch.from_numpy(lower(count)), torch.zeros(count, 2))


def test_the_shipped_files_stay_under_twelve_megabytes() -> None:
    size = sum(file.stat().st_size for file in EMBEDDED_FOLDER.iterdir() if file.is_file())
    assert size < 12e6, f"captioner/embedded holds {size / MIB:.1f} MiB"


def test_the_shipped_weights_fit_their_own_config(embedded: tuple[Captioner, CaptionTokenizer]) -> None:
    captioner, tokenizer = embedded
    assert captioner.decoder.config.vocab_size == len(tokenizer)
    assert all(torch.isfinite(parameter).all() for parameter in captioner.parameters())


def test_the_encoder_turns_pixels_of_any_batch_size_into_float32_features(
    embedded: tuple[Captioner, CaptionTokenizer],
) -> None:
    encoder = embedded[0].encoder
    pixels = torch.randint(0, 256, (3, 260, 260, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = encoder(pixels)
        alone = encoder(pixels[:1])
    assert features.shape == (3, encoder.config.tokens, 256)
    assert features.dtype == torch.float32
    torch.testing.assert_close(alone, features[:1], atol=1e-4, rtol=1e-3)


def test_every_imagenet_class_has_a_word_and_no_word_is_without_a_use() -> None:
    config = ConceptEncoderConfig.from_dict(json.loads((EMBEDDED_FOLDER / "config.json").read_text())["encoder"])
    assert len(config.class_words) == CLASSES
    assert {*config.class_words, *config.caption_words} == set(range(len(config.words)))
    assert {"dog", "bus", "pizza"} <= set(config.words)


def test_an_encoder_config_with_an_unknown_key_is_refused_by_name() -> None:
    values = json.loads((EMBEDDED_FOLDER / "config.json").read_text())["encoder"] | {"colour": 1}
    with pytest.raises(ModelUnsupported, match="colour"):
        ConceptEncoderConfig.from_dict(values)


def test_encoder_weights_that_lack_a_tensor_are_refused_by_name() -> None:
    encoder = ConceptEncoder(ConceptEncoderConfig(("thing",), (0,) * CLASSES, (0,), width=8, concepts=1))
    state = encoder.trained_state()
    del state["positions"]
    with pytest.raises(ModelUnsupported, match="positions"):
        encoder.load_trained_state(state)


@pytest.mark.parametrize("text", ["A man, who's here, rides.", "Two dogs. One sits.", "A café with a well-lit table"])
def test_the_tokenizer_gives_back_the_text_it_was_given(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    ids = tokenizer.encode(f"{BOS}{FORMS['short']}{text}{EOS}")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_each_control_token_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    for token in (BOS, EOS, PAD, *FORMS.values()):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(token)) == [token]


def test_the_model_card_names_data_terms_figures_and_weaknesses() -> None:
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    for claim in ("COCO", "CC BY 4.0", "CC0", "Flickr8k", "EfficientNet-Lite2", "CIDEr", "Weaknesses", "license:"):
        assert claim in card, f"the model card does not mention {claim}"


def test_flickr8k_is_left_out_and_quoted_lettering_too(tmp_path: Path) -> None:
    entries = [
        {"file": "a.webp", "split": "train", "source": "x (Flickr8k, native)", "captions": ["A dog"]},
        {"file": "b.webp", "split": "train", "source": "COCO", "captions": ["a cat .", 'A sign says "STOP"']},
        {"file": "c.webp", "split": "val", "source": "COCO", "captions": ["a bus"]},
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries}))
    assert load_photos(tmp_path, "train") == [
        Photo("b.webp", (Caption("A cat", "plain"), Caption("cat", "tags")), written=False)
    ]
    assert len(load_photos(tmp_path, "train", flickr8k=True)) == 2


def test_captions_are_tidied_to_one_style() -> None:
    assert tidy(" a dog  on a sofa . ") == "A dog on a sofa"
    assert tidy("a man , a dog and a cat sit on a sofa..") == "A man, a dog and a cat sit on a sofa."


def test_tags_are_the_things_that_most_captions_name() -> None:
    captions = [Caption("Two dogs on a sofa", "short"), Caption("A man, a lamp and a dog", "medium")]
    assert tags(captions) == Caption("dog, sofa, man, lamp", "tags")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two women hold knives beside buses.", ["woman", "knife", "bus"]),
        ("The sheep and the children run", ["sheep", "child"]),
        ("Shiny and quickly seen", []),
    ],
)
def test_nouns_are_known_in_the_plural_too(text: str, named: list[str]) -> None:
    assert nouns(text) == named


def test_an_exchanged_thing_keeps_number_and_article() -> None:
    assert exchange("A dog sees dogs", "dog", "elephant") == "An elephant sees elephants"
    assert exchange("An apple on a table", "apple", "banana") == "A banana on a table"


def test_a_mirrored_photo_has_left_and_right_changed() -> None:
    assert mirror("Left of the bright lamp, right of the door") == "Right of the bright lamp, left of the door"


def test_packed_captions_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.model.BF16", nullcontext())
    captioner, tokenizer = tiny_captioner()
    chance = random.Random(0)
    first, second = PHOTOS[0].captions[0], PHOTOS[1].captions[0]
    captioner.eval()
    with torch.inference_mode():
        alone = [captioner.losses(look(1), pack([[c]], tokenizer, 0, chance))[0] for c in (first, second)]
        packed, _ = captioner.losses(look(1), pack([[first, second]], tokenizer, 0, chance))
    sizes = [len(tokenizer.sequence(caption.text, None)) - 1 for caption in (first, second)]
    expected = sum(loss * size for loss, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(packed, expected)


def test_no_token_sees_a_later_one() -> None:
    captioner, tokenizer = tiny_captioner()
    captioner.eval()
    batch = pack([[PHOTOS[0].captions[0], PHOTOS[1].captions[0]]], tokenizer, 0, random.Random(0))
    with torch.inference_mode():
        features, _ = captioner.see(look(1))
        before = captioner.logits(features, batch)
        batch.ids[0, 3] += 1
        after = captioner.logits(features, batch)
    changed = ((before - after).abs().amax(-1)[0] > 0).nonzero().flatten().tolist()
    first = int((batch.captions[0] == 0).sum())
    assert changed == list(range(3, first)), "the rest of its own caption changes, and nothing else"


def test_an_exchanged_word_is_among_the_concepts_that_the_decoder_sees() -> None:
    captioner, tokenizer = tiny_captioner()
    words = Words(captioner.encoder.config, PHOTOS)
    photos, arrays = PHOTOS[:1] * 8, lower(8)
    seen, batch = make_batch([0] * 8, photos, [arrays], tokenizer, words, 1.0, random.Random(0))
    exchanged = seen.exchanged_B2[:, 0] >= 0
    assert exchanged.any()
    texts = [tokenizer.decode(row) for row in batch.ids.tolist()]
    for was, (old, new), text in zip(exchanged.tolist(), seen.exchanged_B2.tolist(), texts, strict=True):
        assert (PHOTOS[0].captions[0].text == text) != was
        assert not was or (words.words[new] in text and words.words[old] not in text)


def test_the_loop_learns_four_captions_by_heart() -> None:
    captioner, tokenizer = tiny_captioner()
    settings = TrainingConfig(
        passes=300,
        batch=4,
        learning_rate=3e-3,
        validations=2,
        regularisation=Regularisation(dropout=0, smoothing=0, unseen=0, unseen_concepts=0),
    )
    arrays = lower(4)
    train(
        captioner,
        tokenizer,
        PHOTOS,
        [arrays],
        lambda candidate: loss(candidate, tokenizer, PHOTOS, arrays),
        settings,
        say=lambda line: None,
    )
    written = write(captioner, tokenizer, arrays, 4, ("short",))["short"]
    assert [caption.text for caption in written] == list(TEXTS)
    assert all(-1 < caption.mean_logprob < 0 for caption in written)


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path) -> None:
    captioner, tokenizer = tiny_captioner()
    arrays, lines = lower(4), list[str]()
    for passes in (2, 4):
        train(
            captioner,
            tokenizer,
            PHOTOS,
            [arrays],
            lambda candidate: loss(candidate, tokenizer, PHOTOS, arrays),
            TrainingConfig(passes=passes, batch=4, validations=1),
            tmp_path / "state.pt",
            lines.append,
        )
    assert any("going on from step 2" in line for line in lines)
    assert lines[-1].startswith("step 4")


def test_weights_come_back_within_half_a_step_of_their_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"big": torch.randn(64, 8, 3, 3) * torch.logspace(-3, 3, 64)[:, None, None, None], "small": torch.randn(7)}
    weights.save(state, tmp_path / "w.safetensors")
    back = weights.load(tmp_path / "w.safetensors")
    step = state["big"].flatten(1).abs().amax(1) / 127
    assert ((back["big"] - state["big"]).abs().flatten(1).amax(1) <= 0.501 * step).all()
    torch.testing.assert_close(back["small"], state["small"], atol=1e-3, rtol=1e-3)


def test_scores_know_a_good_caption_from_a_bad_one() -> None:
    references = [["A dog on a sofa", "A brown dog sleeps on a sofa."], ["Two boats on a lake", "Boats on water."]]
    good, bad = ["A brown dog sleeps on a sofa.", "Two boats on a lake"], ["Two boats on a lake", "A man and a dog"]
    well, badly = caption_metrics.score(good, references), caption_metrics.score(bad, references)
    assert well["CIDEr"].mean() > 1 > badly["CIDEr"].mean()
    assert well["subject"].tolist() == [1, 1]
    assert badly["subject"].tolist() == [0, 0]
    assert badly["invented person"].tolist() == [0, 1]
    assert badly["invented animal"].tolist() == [0, 1]
    assert well["object precision"].tolist() == [1, 1]


def test_a_hand_in_a_reference_is_a_person_seen() -> None:
    assert caption_metrics.invented_person("A man holds a phone", ["A hand holds a phone"]) == 0
    assert caption_metrics.invented_person("A man holds a phone", ["A phone on a table"]) == 1


def test_the_main_subject_is_what_most_references_name() -> None:
    assert caption_metrics.main_subject(["A red bus on a street", "A bus", "People wait"]) == "bus"
    assert caption_metrics.main_subject(["Shiny"]) is None


def test_confidence_is_fitted_to_what_was_right() -> None:
    chance = np.random.default_rng(0)
    logprobs = chance.uniform(-3, 0, 4000)
    right = (chance.random(4000) < 1 / (1 + np.exp(-(2 * logprobs + 3)))).astype(float)
    curve = confidence.fit(logprobs, right)
    assert (curve.slope, curve.intercept) == pytest.approx((2, 3), abs=0.3)
    sure = confidence.confidences(curve, logprobs)
    assert confidence.expected_error(sure, right) < 0.03
    assert confidence.expected_error(1 - sure, right) > 0.3


def test_tags_are_rewarded_for_what_is_there_and_not_for_saying_it_twice() -> None:
    references = ["A dog on a sofa", "A dog beside a lamp"]
    assert tag_reward("dog, sofa, lamp", references) == 1
    assert tag_reward("dog, dog", references) < tag_reward("dog", references) < 1
    assert tag_reward("bus", references) == 0


def test_the_reward_of_one_batch_knows_how_rare_words_are_in_all_photos() -> None:
    photos = [
        Photo(f"{i}", (Caption(text, "medium"),), written=True) for i, text in enumerate([*TEXTS, *TEXTS[:1] * 9])
    ]
    reward = Reward(photos)
    common, rare = reward([TEXTS[0]], photos[:1])[0], reward([TEXTS[1]], photos[1:2])[0]
    assert rare > 5, "a whole caption said right is worth 10 less nothing"
    partly = reward(["A brown dog on a lake"], photos[:1])[0]
    assert common > partly > reward(["Two boats on a lake"], photos[:1])[0]


def test_a_teachers_captions_stand_beside_a_photos_own(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text('{"a.webp": {"short": "a  dog .", "plain": ""}}')
    photos = [Photo(name, (Caption("A cat", "medium"),), True) for name in ("a.webp", "b.webp")]
    both = taught(photos, path)
    assert both[0].captions == (Caption("A cat", "medium"), Caption("A dog", "short"))
    assert both[1] == photos[1]


def test_the_average_of_two_seeds_lies_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, tokenizer = checkpoint.load(EMBEDDED_FOLDER)
    name = "transformer.ln_f.bias"
    for folder, shift in (("a", 0.0), ("b", 1.0)):
        captioner.decoder.state_dict()[name].add_(shift)
        checkpoint.save(tmp_path / folder, captioner, tokenizer)
    monkeypatch.setattr(
        sys, "argv", ["average", "--models", *(str(tmp_path / f) for f in "ab"), "--out", str(tmp_path / "c")]
    )
    average.main()
    found = {folder: checkpoint.load(tmp_path / folder)[0].decoder.state_dict()[name] for folder in "abc"}
    torch.testing.assert_close(found["c"], (found["a"] + found["b"]) / 2, atol=0.01, rtol=0)
    assert (found["c"] - found["a"]).mean() > 0.4
