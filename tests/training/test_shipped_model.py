"""The embedded model's files are complete, small and consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from captioner.embedded import BOS, EMBEDDED_FOLDER, EOS, FORMS, PAD, weights
from captioner.errors import ModelUnsupported
from captioner.families.concept_encoder import CLASSES, ConceptEncoder, ConceptEncoderConfig
from export.model_card import read_card
from training.caption_metrics import PER_PHOTO
from training.model import Captioner
from training.model_card import METRICS, TEMPLATE
from training.tokenizer import CaptionTokenizer

MIB = 2**20


def test_the_shipped_files_stay_under_twenty_megabytes() -> None:
    size = sum(file.stat().st_size for file in EMBEDDED_FOLDER.iterdir() if file.is_file())
    assert size < 20e6, f"captioner/embedded holds {size / MIB:.1f} MiB"


def test_the_shipped_weights_fit_their_own_config(shipped: tuple[Captioner, CaptionTokenizer]) -> None:
    captioner, tokenizer = shipped
    assert captioner.decoder.config.vocab_size == len(tokenizer)
    assert all(torch.isfinite(parameter).all() for parameter in captioner.parameters())


def test_the_encoder_turns_pixels_of_any_batch_size_into_float32_features(
    shipped: tuple[Captioner, CaptionTokenizer],
) -> None:
    encoder = shipped[0].encoder
    pixels = torch.randint(0, 256, (3, 260, 260, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = encoder(pixels)
        alone = encoder(pixels[:1])
    assert features.shape == (3, encoder.config.tokens, encoder.config.width)
    assert features.dtype == torch.float32
    torch.testing.assert_close(alone, features[:1], atol=1e-4, rtol=1e-3)


def test_every_imagenet_class_has_a_word_and_every_word_is_used() -> None:
    config = ConceptEncoderConfig.from_dict(json.loads((EMBEDDED_FOLDER / "config.json").read_text())["encoder"])
    assert len(config.class_words) == CLASSES
    assert {*config.class_words, *config.caption_words} == set(range(len(config.words)))
    assert {"dog", "bus", "pizza"} <= set(config.words)


def test_an_encoder_config_with_an_unknown_key_is_refused_by_name() -> None:
    values = json.loads((EMBEDDED_FOLDER / "config.json").read_text())["encoder"] | {"color": 1}
    with pytest.raises(ModelUnsupported, match="color"):
        ConceptEncoderConfig.from_dict(values)


def test_encoder_weights_that_lack_a_tensor_are_refused_by_name() -> None:
    encoder = ConceptEncoder(ConceptEncoderConfig(("thing",), (0,) * CLASSES, (0,), width=8, concepts=1))
    state = encoder.trained_state()
    del state["positions"]
    with pytest.raises(ModelUnsupported, match="positions"):
        encoder.load_trained_state(state)


@pytest.mark.parametrize("text", ["A man, who's here, rides.", "Two dogs. One sits.", "A café with a well-lit table"])
def test_the_tokenizer_round_trips_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    ids = tokenizer.encode(f"{BOS}{FORMS['short']}{text}{EOS}")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_each_control_token_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    for token in (BOS, EOS, PAD, *FORMS.values()):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(token)) == [token]


def test_the_model_card_names_data_terms_results_and_limitations() -> None:
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    for claim in ("COCO", "CC BY 4.0", "CC0", "Flickr8k", "EfficientNet-Lite2", "CIDEr", "Limitations", "license:"):
        assert claim in card, f"the model card does not mention {claim}"
    assert read_card(EMBEDDED_FOLDER).intended_use


def test_the_shipped_model_card_has_the_text_of_its_template() -> None:
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    paragraphs = [part for part in TEMPLATE.split("\n\n") if "{" not in part]
    assert len(paragraphs) > 5
    assert [part for part in paragraphs if part.strip() not in card] == []


def test_the_model_card_explains_each_metric_of_its_table() -> None:
    assert list(METRICS) == list(PER_PHOTO)


def test_quantized_weights_round_trip_within_half_a_quantization_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"big": torch.randn(64, 8, 3, 3) * torch.logspace(-3, 3, 64)[:, None, None, None], "small": torch.randn(7)}
    weights.save(state, tmp_path / "w.safetensors")
    loaded = weights.load(tmp_path / "w.safetensors")
    step = state["big"].flatten(1).abs().amax(1) / 127
    assert ((loaded["big"] - state["big"]).abs().flatten(1).amax(1) <= 0.501 * step).all()
    torch.testing.assert_close(loaded["small"], state["small"], atol=1e-3, rtol=1e-3)
