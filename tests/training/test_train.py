"""The training loop, its metrics, rewards and calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training.conftest import PHOTOS, TEXTS, lower_features, tiny_captioner
from training import caption_metrics, confidence
from training.dataset import Caption, Photo
from training.generate import generate_captions
from training.model import Captioner, Regularisation
from training.phrasing import Phrasing
from training.reward import Reward, tag_reward
from training.tokenizer import CaptionTokenizer
from training.train import TrainingConfig, train
from training.validation import validation_loss


def learn(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    features: NDArray[np.float32],
    config: TrainingConfig,
    state_file: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Train on PHOTOS, and validate on them too."""

    def validate(candidate: Captioner) -> float:
        return validation_loss(candidate, tokenizer, PHOTOS, features)

    train(captioner, tokenizer, PHOTOS, [features], validate, config, state_file, log)


def test_the_loop_memorises_four_captions() -> None:
    captioner, tokenizer = tiny_captioner()
    config = TrainingConfig(
        epochs=60,
        batch=4,
        learning_rate=1e-2,
        validations=2,
        regularisation=Regularisation(dropout=0, label_smoothing=0, image_token_dropout=0, concept_token_dropout=0),
    )
    features = lower_features(4)
    learn(captioner, tokenizer, features, config)
    captions = generate_captions(captioner, tokenizer, features, 4, ("short",))["short"]
    assert [caption.text for caption in captions] == list(TEXTS)
    assert all(-1 < caption.mean_logprob < 0 for caption in captions)


def test_a_stopped_run_resumes_from_its_state_file(tmp_path: Path) -> None:
    captioner, tokenizer = tiny_captioner()
    features, lines = lower_features(4), list[str]()
    for epochs in (2, 4):
        config = TrainingConfig(epochs=epochs, batch=4, validations=1)
        learn(captioner, tokenizer, features, config, tmp_path / "state.pt", lines.append)
    assert any("resuming from step 2" in line for line in lines)
    assert lines[-1].startswith("step 4")


def test_metrics_distinguish_good_captions_from_bad_ones() -> None:
    references = [["A dog on a sofa", "A brown dog sleeps on a sofa."], ["Two boats on a lake", "Boats on water."]]
    good = caption_metrics.score(["A brown dog sleeps on a sofa.", "Two boats on a lake"], references)
    bad = caption_metrics.score(["Two boats on a lake", "A man and a dog"], references)
    assert good["CIDEr"].mean() > 1 > bad["CIDEr"].mean()
    assert good["subject"].tolist() == [1, 1]
    assert bad["subject"].tolist() == [0, 0]
    assert bad["invented person"].tolist() == [0, 1]
    assert bad["invented animal"].tolist() == [0, 1]
    assert good["object precision"].tolist() == [1, 1]


def test_a_person_is_not_invented_if_a_reference_names_a_hand() -> None:
    assert caption_metrics.invented_person("A man holds a phone", ["A hand holds a phone"]) == 0
    assert caption_metrics.invented_person("A man holds a phone", ["A phone on a table"]) == 1


def test_the_main_subject_is_what_most_references_name() -> None:
    assert caption_metrics.main_subject(["A red bus on a street", "A bus", "People wait"]) == "bus"
    assert caption_metrics.main_subject(["Shiny"]) is None


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("A white dog on a sofa", ["A brown dog by a white wall"], 1),
        ("A brown and white dog", ["A brown dog with a white chest"], 0),
        ("A red car", ["A shiny car with red paint"], 0),
        ("A blue car", ["A shiny car with red paint"], 1),
        ("A gray cat", ["A grey cat"], 0),
        ("A cat", ["A grey cat"], 0),
    ],
)
def test_a_color_is_wrong_if_no_reference_supports_it(caption: str, references: list[str], wrong: float) -> None:
    assert caption_metrics.wrong_color(caption, references) == wrong


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("A dog on grass", ["Two dogs on grass"], 1),
        ("Two dogs", ["A dog"], 1),
        ("Three dogs", ["Two dogs"], 1),
        ("People on a beach", ["A crowd on a beach"], 0),
        ("Sheep on a hill", ["A sheep on a hill"], 0),
        ("A group of dogs", ["Two dogs on grass"], 0),
    ],
)
def test_a_count_is_wrong_if_no_reference_supports_it(caption: str, references: list[str], wrong: float) -> None:
    assert caption_metrics.wrong_count(caption, references) == wrong


def test_endings_and_synonyms_do_not_make_a_word_unsupported() -> None:
    assert caption_metrics.unsupported_words("A man riding waves", ["A surfer rides a wave"]) == 0
    assert caption_metrics.unsupported_words("A man on a train", ["A surfer rides a wave"]) == 1


@pytest.mark.parametrize(
    ("caption", "doubled"),
    [
        ("A table and a table", 1),
        ("A white and white dog", 1),
        ("Its back open open", 1),
        ("A white dog on a white sofa on a rug", 0),
    ],
)
def test_a_doubled_word_is_found(caption: str, doubled: float) -> None:
    assert caption_metrics.doubled_word(caption) == doubled


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("A elephant", 1),
        ("A red bus and a umbrella", 1),
        ("An dog", 1),
        ("An elephant, a uniform, a one-way street, a unicorn, an hourglass", 0),
        ("A dog on a ewe", 0),
    ],
)
def test_an_article_must_fit_the_sound_of_the_next_word(caption: str, wrong: float) -> None:
    assert caption_metrics.wrong_article(caption) == wrong


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("A man on a bike", ["A woman on a bike", "A girl rides"], 1),
        ("A girl on a bike", ["Men on bikes"], 1),
        ("A man on a bike", ["A man and a woman"], 0),
        ("A man on a bike", ["A person on a bike"], 0),
        ("A person on a bike", ["A woman on a bike"], 0),
    ],
)
def test_a_gender_is_wrong_if_the_references_name_only_the_other(
    caption: str, references: list[str], wrong: float
) -> None:
    assert caption_metrics.wrong_gender(caption, references) == wrong


@pytest.mark.parametrize(
    ("caption", "good"),
    [
        ("Two dogs on grass", 1),
        ("Two dogs on green grass", 0),
        ("Two dogs on grass near trees", 1),
        ("Two dogs on grass near trees and cars", 0),
        ("A dog on grass", 0),
        ("Two cats on grass", 0),
    ],
)
def test_a_caption_is_acceptable_if_the_references_support_it(caption: str, good: float) -> None:
    assert caption_metrics.acceptable(caption, ["Two dogs on grass", "Two brown dogs play on grass"]) == good


def test_a_group_of_animals_is_no_person() -> None:
    assert caption_metrics.things("A group of elephants") == ["elephant"]
    assert "person" in caption_metrics.things("A group of people")


def test_a_drawing_is_to_be_called_one_and_a_photo_is_not() -> None:
    assert caption_metrics.kind_right("A dog", ["A cartoon of a dog"]) == 0
    assert caption_metrics.kind_right("A painting of a dog", ["A cartoon of a dog"]) == 1
    assert caption_metrics.kind_right("A sketch of a dog", ["A dog"]) == 0


def test_words_that_no_caption_puts_together_are_unknown() -> None:
    phrasing = Phrasing(["A cup of tea", "A loaf of bread"])
    assert phrasing.unknown("A cup of tea.") == 0
    assert phrasing.unknown("A cup of bread") == 1


def test_confidence_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    logprobs = rng.uniform(-3, 0, 4000)
    correct = (rng.random(4000) < 1 / (1 + np.exp(-(2 * logprobs + 3)))).astype(float)
    curve = confidence.fit(logprobs, correct)
    assert (curve.slope, curve.intercept) == pytest.approx((2, 3), abs=0.3)
    values = confidence.confidences(curve, logprobs)
    assert confidence.expected_calibration_error(values, correct) < 0.03
    assert confidence.expected_calibration_error(1 - values, correct) > 0.3


def test_repeated_tags_lower_the_reward() -> None:
    references = ["A dog on a sofa", "A dog beside a lamp"]
    assert tag_reward("dog, sofa, lamp", references) == 1
    assert tag_reward("dog, dog", references) < tag_reward("dog", references) < 1
    assert tag_reward("bus", references) == 0


def test_the_reward_of_a_batch_uses_document_frequencies_of_all_photos() -> None:
    photos = [
        Photo(f"{i}", (Caption(text, "medium"),), synthetic=True) for i, text in enumerate([*TEXTS, *TEXTS[:1] * 9])
    ]
    reward = Reward(photos)
    common, rare = reward([TEXTS[0]], photos[:1])[0], reward([TEXTS[1]], photos[1:2])[0]
    assert rare > 5, "an exact caption is worth up to 10, less if its words are in many captions"
    partly = reward(["A brown dog on a lake"], photos[:1])[0]
    assert common > partly > reward(["Two boats on a lake"], photos[:1])[0]
