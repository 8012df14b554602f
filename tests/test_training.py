"""The embedded model's files are whole and small, and the loop that makes them learns."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from captioner.embedded import BOS, EOS, FOLDER, LENGTHS, PAD
from captioner.errors import ModelUnsupported
from captioner.families.concept_encoder import CLASSES, ConceptEncoder, ConceptEncoderConfig
from training import artefact, evaluate
from training.dataset import Caption, Photo, length_of, load_photos, mirror, pack, tidy
from training.model import Captioner, Regularisation, random_grids
from training.tokenizer import CaptionTokenizer
from training.train import Settings, train

MIB = 2**20
TEXTS = ("A brown dog on a red sofa", "Two boats on a lake", "A bowl of green apples", "A man rides a white horse")
PHOTOS = [Photo(f"{i}.webp", (Caption(text, "short"),), written=True) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def embedded() -> tuple[Captioner, CaptionTokenizer]:
    return artefact.load(FOLDER)


def tiny_captioner() -> tuple[Captioner, CaptionTokenizer]:
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.learn(TEXTS, vocabulary=300)
    words = ConceptEncoderConfig(("dog", "boat", "apple"), (0, 1, 2, 0) * (CLASSES // 4), width=32, concepts=2)
    captioner = Captioner.build(
        words, len(tokenizer), tokenizer.bos, tokenizer.eos, tokenizer.pad, layers=1, heads=2, dropout=0.0
    )
    return captioner, tokenizer


def test_the_shipped_files_stay_under_twelve_megabytes() -> None:
    size = sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file())
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


def test_every_imagenet_class_has_a_word() -> None:
    config = ConceptEncoderConfig.from_dict(json.loads((FOLDER / "config.json").read_text())["encoder"])
    assert len(config.class_words) == CLASSES
    assert set(config.class_words) == set(range(len(config.words)))
    assert {"dog", "bus", "pizza"} <= set(config.words)


def test_an_encoder_config_with_an_unknown_key_is_refused_by_name() -> None:
    values = json.loads((FOLDER / "config.json").read_text())["encoder"] | {"colour": 1}
    with pytest.raises(ModelUnsupported, match="colour"):
        ConceptEncoderConfig.from_dict(values)


def test_encoder_weights_that_lack_a_tensor_are_refused_by_name() -> None:
    encoder = ConceptEncoder(ConceptEncoderConfig(("thing",), (0,) * CLASSES, width=8, concepts=1))
    state = encoder.trained_state()
    del state["positions"]
    with pytest.raises(ModelUnsupported, match="positions"):
        encoder.load_trained_state(state)


@pytest.mark.parametrize("text", ["A man, who's here, rides.", "Two dogs. One sits.", "A café with a well-lit table"])
def test_the_tokenizer_gives_back_the_text_it_was_given(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer.encode(f"{BOS}{LENGTHS['short']}{text}{EOS}")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_each_control_token_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for token in (BOS, EOS, PAD, *LENGTHS.values()):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(token)) == [token]


def test_the_model_card_names_data_terms_figures_and_weaknesses() -> None:
    card = (FOLDER / "README.md").read_text()
    for claim in ("COCO", "CC BY 4.0", "CC0", "Flickr8k", "EfficientNet-Lite2", "CIDEr", "Weaknesses", "license:"):
        assert claim in card, f"the model card does not mention {claim}"


def test_flickr8k_is_left_out_and_quoted_lettering_too(tmp_path: Path) -> None:
    entries = [
        {"file": "a.webp", "split": "train", "source": "x (Flickr8k, native)", "captions": ["A dog"]},
        {"file": "b.webp", "split": "train", "source": "COCO", "captions": ["a cat .", 'A sign says "STOP"']},
        {"file": "c.webp", "split": "val", "source": "COCO", "captions": ["a bus"]},
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries}))
    assert load_photos(tmp_path, "train") == [Photo("b.webp", (Caption("A cat", "short"),), written=False)]


def test_captions_are_tidied_to_one_style() -> None:
    assert tidy(" a dog  on a sofa . ") == "A dog on a sofa"
    assert tidy("a man , a dog and a cat sit on a sofa..") == "A man, a dog and a cat sit on a sofa."


@pytest.mark.parametrize(("words", "length"), [(8, "short"), (9, "medium"), (15, "medium"), (20, None), (25, "long")])
def test_a_caption_is_as_long_as_its_words(words: int, length: str | None) -> None:
    assert length_of("word " * words) == length


def test_a_mirrored_photo_has_left_and_right_changed() -> None:
    assert mirror("Left of the bright lamp, right of the door") == "Right of the bright lamp, left of the door"


def test_packed_captions_do_not_see_each_other() -> None:
    captioner, tokenizer = tiny_captioner()
    grids, chance = random_grids(1), random.Random(0)
    first, second = PHOTOS[0].captions[0], PHOTOS[1].captions[0]
    captioner.eval()
    with torch.inference_mode():
        alone = [captioner.loss(grids, pack([[caption]], tokenizer, 0, chance)) for caption in (first, second)]
        packed = captioner.loss(grids, pack([[first, second]], tokenizer, 0, chance))
    sizes = [len(tokenizer.sequence(caption.text, None)) - 1 for caption in (first, second)]
    expected = sum(loss * size for loss, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(packed, expected)


def test_the_loop_learns_four_captions_by_heart(tmp_path: Path) -> None:
    captioner, tokenizer = tiny_captioner()
    torch.manual_seed(0)
    grids = random_grids(4)
    grids += torch.arange(4)[:, None, None] * torch.rand(1, 1, grids.shape[2])  # apart enough to be told apart
    settings = Settings(
        passes=400,
        batch=4,
        learning_rate=3e-3,
        validations=2,
        regularisation=Regularisation(dropout=0, smoothing=0, unseen=0),
    )
    arrays = grids.numpy()
    train(
        captioner,
        tokenizer,
        PHOTOS,
        [arrays],
        lambda candidate: evaluate.loss(candidate, tokenizer, PHOTOS, arrays),
        settings,
        say=lambda line: None,
    )
    assert evaluate.write(captioner, tokenizer, arrays, 4, "short") == list(TEXTS)


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path) -> None:
    captioner, tokenizer = tiny_captioner()
    arrays, lines = random_grids(4).numpy(), list[str]()
    for passes in (2, 4):
        train(
            captioner,
            tokenizer,
            PHOTOS,
            [arrays],
            lambda candidate: evaluate.loss(candidate, tokenizer, PHOTOS, arrays),
            Settings(passes=passes, batch=4, validations=1),
            tmp_path / "state.pt",
            lines.append,
        )
    assert any("going on from step 2" in line for line in lines)
    assert lines[-1].startswith("step 4")


def test_cider_and_subject_match_know_a_good_caption_from_a_bad_one() -> None:
    references = [["A dog on a sofa", "A brown dog sleeps on a sofa."], ["Two boats on a lake", "Boats on water."]]
    good, bad = ["A brown dog sleeps on a sofa.", "Two boats on a lake"], ["Two boats on a lake", "A dog on a sofa"]
    assert evaluate.cider(good, references) > 1 > evaluate.cider(bad, references)
    assert evaluate.subject_match(good, references) == 1
    assert evaluate.subject_match(bad, references) == 0
