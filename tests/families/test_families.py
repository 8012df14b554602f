"""Families: a model folder taken apart as its authors meant it, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VisionEncoderDecoderModel, ViTImageProcessor

from captioner.errors import ModelUnsupported
from captioner.families import FAMILIES, family
from captioner.families.base import Source
from captioner.families.vision_encoder_decoder import VisionEncoderDecoder
from captioner.image.decode import load_pixels
from captioner.image.spec import ImageSpec
from tests.image.test_decode import NOISE, file
from tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny-vit-gpt2")
    tiny.save_vision_encoder_decoder(made)
    return made


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return VisionEncoderDecoder.load(folder)


def changed(folder: Path, to: Path, file_name: str, **changes: object) -> Path:
    """A copy of the model folder with keys of one JSON file changed; None removes one."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    values = json.loads((to / file_name).read_text()) | changes
    (to / file_name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return to


def test_an_unknown_model_type_is_answered_with_the_known() -> None:
    with pytest.raises(ModelUnsupported) as caught:
        family("none-such")
    assert "'none-such'" in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)


def test_each_family_is_registered_under_its_own_type() -> None:
    assert {kind.model_type: kind for kind in FAMILIES.values()} == FAMILIES
    assert family("vision-encoder-decoder") is VisionEncoderDecoder


def test_the_image_is_prepared_as_the_models_own_processor_does_it(folder: Path, source: Source) -> None:
    data = file(NOISE, "PNG")
    expected = ViTImageProcessor.from_pretrained(folder)(NOISE, return_tensors="pt")
    pixels, _ = load_pixels(data, source.image)
    model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        theirs = model.enc_to_dec_proj(model.encoder(pixel_values=expected["pixel_values"]).last_hidden_state)
        ours = source.vision_encoder(torch.from_numpy(pixels.copy())[None])
    assert ours.shape == (1, 17, tiny.FEATURE_WIDTH)
    assert float((ours - theirs).abs().max()) < 0.02 * float(theirs.abs().max())


def test_a_source_carries_what_the_folder_says(source: Source) -> None:
    assert source.image == ImageSpec(32, 32, "bicubic")
    assert (source.start_ids, source.stop_ids, source.context_tokens) == ((0,), (1,), tiny.CONTEXT)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": 48}, ImageSpec(48, 48, "bicubic")),
        ({"resample": 1}, ImageSpec(32, 32, "lanczos")),
        ({"resample": None}, ImageSpec(32, 32, "bilinear")),
    ],
)
def test_the_processors_ways_to_give_a_size_are_read(
    folder: Path, tmp_path: Path, changes: dict[str, object], expected: ImageSpec
) -> None:
    copy = changed(folder, tmp_path, "preprocessor_config.json", **changes)
    assert VisionEncoderDecoder.load(copy).image == expected


@pytest.mark.parametrize(
    ("file_name", "changes", "named"),
    [
        ("preprocessor_config.json", {"size": {"shortest_edge": 224}}, "shortest_edge"),
        ("preprocessor_config.json", {"size": None}, "size None"),
        ("preprocessor_config.json", {"do_center_crop": True}, "do_center_crop True"),
        ("preprocessor_config.json", {"resample": 4}, "resample 4"),
    ],
)
def test_what_would_be_served_wrongly_is_refused_by_name(
    folder: Path, tmp_path: Path, file_name: str, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelUnsupported, match=named):
        VisionEncoderDecoder.load(changed(folder, tmp_path, file_name, **changes))


def test_a_model_that_does_not_say_how_a_caption_begins_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path, "config.json", decoder_start_token_id=None)
    assert VisionEncoderDecoder.load(copy).start_ids == (0,), "generation_config.json says it too"
    (copy / "generation_config.json").write_text("{}")
    with pytest.raises(ModelUnsupported, match="decoder_start_token_id is None"):
        VisionEncoderDecoder.load(copy)


def test_normalisation_that_is_off_is_left_off(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path, "preprocessor_config.json", do_normalize=False, do_rescale=False)
    encoder = VisionEncoderDecoder.load(copy).vision_encoder
    model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    pixels = torch.from_numpy(np.array(NOISE.resize((32, 32))))[None]
    with torch.inference_mode():
        raw = pixels.permute(0, 3, 1, 2).float()
        expected = model.enc_to_dec_proj(model.encoder(pixel_values=raw).last_hidden_state)
        assert torch.allclose(encoder(pixels), expected, atol=1e-4)
