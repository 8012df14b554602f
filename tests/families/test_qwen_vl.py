"""What only the Qwen-VL families do: published configurations, M-RoPE, DeepStack; the contract suite has the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.seeded import qwen_vl as seeded
from captioner.decoders import prefix
from captioner.decoders.base import Decoder
from captioner.decoders.mrope import MRopeDecoder
from captioner.decoders.rows import RowCopy
from captioner.families import family
from captioner.families.qwen_vl import MAX_IMAGE_TOKENS, PROCESSOR_DEFAULTS, QwenVL, dynamic_spec
from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel
from tests.support.greedy import greedy_rows

BILLIONS = {
    "Qwen3-VL-2B": 2.13,
    "Qwen3-VL-4B": 4.44,
    "Qwen3-VL-8B": 8.77,
    "Qwen2.5-VL-3B": 3.75,
    "Qwen2.5-VL-7B": 8.29,
}


@pytest.fixture(params=get_args(seeded.ModelType))
def model(request: pytest.FixtureRequest, tiny_models: TinyModels) -> TinyModel:
    return tiny_models(request.param)


@pytest.mark.parametrize("name", seeded.PUBLISHED)
def test_published_configurations_are_accepted_from_pixels_to_logits(name: str) -> None:
    config: Any = seeded.published_config(name)
    kind = family(config.model_type)
    assert issubclass(kind, QwenVL)
    processor = PROCESSOR_DEFAULTS | seeded.processor(config, tiny=False).to_dict()
    spec = dynamic_spec(processor, config.vision_config)
    assert spec.parts(*spec.max_grid) == MAX_IMAGE_TOKENS
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        encoder = kind.encoder(model.model.visual, processor)
        features = encoder(torch.zeros(2, *spec.pixel_size(5, 6), 3, dtype=torch.uint8))
    assert sum(weights.numel() for weights in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], abs=0.005)
    levels = len(getattr(config.vision_config, "deepstack_visual_indexes", []))
    width = config.text_config.hidden_size * (1 + levels)
    assert features.shape == (2, 30, width)
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(kind.text_config(model.model.language_model))
    decoder = MRopeDecoder(text, 100, config.image_token_id, feature_width=width, rotary=kind.text_rotary)
    decoder.allocate(1)
    prompt_ids = [1, *[config.image_token_id] * 30, 2, 3]
    decoder.prefill(0, features[0].reshape(5, 6, width), prompt_ids)
    ids = torch.zeros(1, dtype=torch.long, device="meta")
    assert decoder.decode(ids, ids, 33).shape == (1, config.text_config.vocab_size)


def test_the_requests_of_the_contract_suite_have_different_grids(model: TinyModel) -> None:
    assert len({features.shape[:2] for features, _, _ in model.requests}) > 3


def test_rotary_positions_are_those_of_the_original(model: TinyModel) -> None:
    original: Any = AutoModelForImageTextToText.from_pretrained(model.folder)
    decoder = model.decoder(slots=1)
    assert isinstance(decoder, MRopeDecoder)
    seen: list[torch.Tensor] = []
    decoder.model.base_model.rotary_emb.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    for features, prompt_ids, _ in model.requests:
        ids = torch.tensor([prompt_ids])
        rows, columns, _ = features.shape
        expected, offset = original.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == original.config.image_token_id).int(),
            image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]),
        )
        decoder.prefill(0, features, prompt_ids)
        assert torch.equal(seen[-1], expected[:, :, :-1])
        last = len(prompt_ids) - 1
        decoder.decode(ids[:, -1], torch.tensor([last]), last + 1)
        assert seen[-1].item() == expected[0, 0, -1].item() == last + offset.item()


def next_logits(decoder: Decoder, features: torch.Tensor, prompt_ids: list[int]) -> torch.Tensor:
    """Return the logits after the prompt, (1, vocabulary), in row 0."""
    decoder.prefill(0, features, prompt_ids)
    last = len(prompt_ids) - 1
    return decoder.decode(torch.tensor(prompt_ids[-1:]), torch.tensor([last]), last + 1)


def test_the_same_features_on_another_grid_change_the_logits(model: TinyModel) -> None:
    features, prompt_ids, _ = next(each for each in model.requests if each[0].shape[0] != each[0].shape[1])
    turned = features.reshape(features.shape[1], features.shape[0], -1)
    decoder = model.decoder(slots=1)
    logits = [next_logits(decoder, each, prompt_ids) for each in (features, turned, features)]
    assert torch.equal(logits[0], logits[2]) and not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_a_prompt_longer_than_one_prefill_pass_gives_the_same_captions(
    model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "PREFILL_QUERIES", 7)
    assert greedy_rows(model.decoder(), model.requests, model.source.stop_ids) == model.expected


def test_a_failed_prefill_leaves_nothing_for_the_next_step(model: TinyModel) -> None:
    decoder = model.decoder(slots=2)
    (features, prompt_ids, _), (other, other_ids, _) = model.requests[:2]
    decoder.prefill(0, features, prompt_ids)
    step = torch.tensor(prompt_ids[-1:]), torch.tensor([len(prompt_ids) - 1]), len(prompt_ids)
    expected = decoder.decode(*step)
    with pytest.raises(RuntimeError):
        decoder.prefill(1, other[..., :-1], other_ids)
    assert torch.equal(decoder.decode(*step), expected)


def test_each_level_of_deepstack_changes_the_logits(tiny_models: TinyModels) -> None:
    model = tiny_models("qwen3_vl")
    features, prompt_ids, _ = model.requests[0]
    width = features.shape[-1] // 3
    decoder = model.decoder(slots=1)
    expected = next_logits(decoder, features, prompt_ids)
    for level in (1, 2):
        changed = features.clone()
        changed[..., level * width : (level + 1) * width] = 0
        assert not torch.allclose(next_logits(decoder, changed, prompt_ids), expected, atol=1e-3)


def test_offsets_move_with_their_rows(model: TinyModel) -> None:
    decoder = model.decoder(slots=3)
    assert isinstance(decoder, MRopeDecoder)
    for row, (features, prompt_ids, _) in enumerate(model.requests[:3]):
        decoder.prefill(row, features, prompt_ids)
    offsets = decoder.offsets.tolist()
    decoder.copy(RowCopy([2], [0], decoder.device), 10)
    assert decoder.offsets.tolist() == [offsets[2], offsets[1], offsets[2]]


def test_the_default_system_turn_of_a_template_is_kept(tiny_models: TinyModels) -> None:
    source = tiny_models("qwen2_5_vl").source
    assert "system\nYou are a helpful assistant." in source.prompt_template
    assert "helpful" not in source.system_template


def test_a_processor_that_permits_fewer_pixels_limits_images_and_context(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "preprocessor_config.json", min_pixels=64, max_pixels=12 * 64 + 1)
    expected = replace(model.source.image, min_pixels=64, max_pixels=12 * 64 + 1)
    image = model.kind.load(folder).image
    assert image == expected
    assert image.parts(*image.max_grid) == 12
