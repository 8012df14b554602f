"""What only PaliGemma does: two-way attention in the prompt, Gemma and Gemma 2; the contract suite has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

from benchmarks.seeded import paligemma as seeded
from captioner.decoders import prefix
from captioner.families.paligemma import LANGUAGES, PROMPTS, PaliGemma
from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel
from tests.support.greedy import greedy_rows, publish


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> TinyModel:
    return tiny_models("paligemma")


def test_captions_depend_on_two_way_attention_in_the_prompt(model: TinyModel) -> None:
    for narrower in ("image", None):
        decoder: Any = model.decoder()
        decoder.bidirectional = narrower
        assert greedy_rows(decoder, model.requests, model.source.stop_ids) != model.expected


def test_a_prompt_is_never_split_between_prefill_passes(model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "PREFILL_QUERIES", 7)
    assert greedy_rows(model.decoder(), model.requests, model.source.stop_ids) == model.expected


def test_the_first_paligemma_which_has_gemmas_text_model_equals_generate(model: TinyModel, tmp_path: Path) -> None:
    seeded.save(tmp_path, "tiny", text_model="gemma")
    source = PaliGemma.load(tmp_path)
    manifest = publish(source, "paligemma", tmp_path / "published")
    decoder = PaliGemma.decoder(tmp_path / "published", manifest, "fp32", torch.device("cpu"))
    decoder.allocate(len(model.inputs))
    with torch.inference_mode():
        requests = [(source.vision_encoder(pixels[None])[0], ids, 20) for pixels, ids in model.inputs]
    expected = [source.generate(pixels, ids, max_new_tokens=20) for pixels, ids in model.inputs]
    assert greedy_rows(decoder, requests, source.stop_ids) == expected
    assert decoder.model.config.architectures == ["GemmaForCausalLM"]


def test_a_caption_up_to_the_last_position_equals_generate(model: TinyModel) -> None:
    (features, prompt_ids, _), (pixels, _) = model.requests[0], model.inputs[0]
    room = model.source.context_tokens - len(prompt_ids)
    expected = model.source.generate(pixels, prompt_ids, max_new_tokens=room, eos_token_id=-1)
    assert greedy_rows(model.decoder(slots=1), [(features, prompt_ids, room)], ()) == [expected]
    assert len(expected) == room


def test_styles_name_the_published_tasks_and_languages() -> None:
    assert PROMPTS.render(None, None) == "caption en"
    assert PROMPTS.render("descriptive", "long") == "describe en"
    assert PROMPTS.render("alt-text", None) == "cap en"
    assert PROMPTS.render("descriptive-de", "short") == "caption de"
    assert len(LANGUAGES) == 34 and "en" not in LANGUAGES


def test_a_config_with_the_keys_of_the_published_one_is_accepted(model: TinyModel, tmp_path: Path) -> None:
    text = {
        "eos_token_id": [1, 5],
        "sliding_window_size": 300,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
    }
    folder = model.changed(tmp_path, "config.json", _vocab_size=334, text_config=text | {"num_image_tokens": 16})
    source = PaliGemma.load(folder)
    assert [source.generate(*given, max_new_tokens=model.case.limit) for given in model.inputs] == model.expected


@pytest.mark.parametrize("text_model", get_args(seeded.TextModel))
def test_the_published_dimensions_are_those_of_the_3b_models(text_model: seeded.TextModel) -> None:
    config: Any = seeded.config("published", text_model)
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    assert 2.9e9 < sum(weights.numel() for weights in model.parameters()) < 3.1e9
    assert config.text_config.num_image_tokens == 256
