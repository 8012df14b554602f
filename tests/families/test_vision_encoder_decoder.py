"""What only vision-encoder-decoder models do; the contract suite has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import VisionEncoderDecoderModel

from captioner.errors import ModelUnsupported
from captioner.image.spec import ImageSpec
from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel, noise


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> TinyModel:
    return tiny_models("vision-encoder-decoder")


def test_a_processor_with_only_a_size_gets_the_defaults_of_vit(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "config.json")
    (folder / "preprocessor_config.json").write_text('{"size": 48}')
    assert model.kind.load(folder).image == ImageSpec(48, 48, "bilinear")


def test_the_start_id_may_stand_in_either_config_and_must_stand_in_one(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "config.json", decoder_start_token_id=None)
    assert model.kind.load(folder).start_ids == (299,), "generation_config.json has it too"
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ModelUnsupported, match="decoder_start_token_id is None"):
        model.kind.load(folder)


def test_disabled_normalisation_stays_disabled(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "preprocessor_config.json", do_normalize=False, do_rescale=False)
    encoder = model.kind.load(folder).vision_encoder
    original: Any = VisionEncoderDecoderModel.from_pretrained(model.folder).eval()
    pixels, _ = model.read(noise((32, 32)), "")
    with torch.inference_mode():
        raw = pixels[None].permute(0, 3, 1, 2).float()
        expected = original.enc_to_dec_proj(original.encoder(pixel_values=raw).last_hidden_state)
        assert torch.allclose(encoder(pixels[None]), expected, atol=1e-4)
