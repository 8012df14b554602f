"""What only Gemma 3 does: two-way attention inside the image, sliding windows; the contract suite has the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from benchmarks.seeded import gemma3 as seeded
from captioner.decoders import prefix
from captioner.families.gemma3 import Gemma3
from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel
from tests.support.greedy import greedy_rows

# The keys of google/gemma-3-4b-it's config.json beside sizes; its text_config leaves the other defaults out.
PUBLISHED = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 7,
    "eoi_token_index": 8,
    "eos_token_id": [1, 6],
    "image_token_index": 9,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 16,
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}
PROCESSOR_NULLS = ("do_convert_rgb", "do_pan_and_scan", "pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops")


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> TinyModel:
    return tiny_models("gemma3")


def test_captions_depend_on_two_way_attention_inside_the_image(model: TinyModel) -> None:
    decoder: Any = model.decoder()
    decoder.bidirectional = None
    assert greedy_rows(decoder, model.requests, model.source.stop_ids) != model.expected


def test_an_image_is_never_split_between_prefill_passes(model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "PREFILL_QUERIES", 7)
    assert greedy_rows(model.decoder(), model.requests, model.source.stop_ids) == model.expected


def test_a_caption_as_long_as_the_sliding_window_equals_generate(model: TinyModel) -> None:
    (features, prompt_ids, _), (pixels, _) = model.requests[0], model.inputs[0]
    room = model.source.context_tokens - len(prompt_ids)
    expected = model.source.generate(pixels, prompt_ids, max_new_tokens=room, eos_token_id=-1)
    assert greedy_rows(model.decoder(slots=1), [(features, prompt_ids, room)], ()) == [expected]
    assert len(expected) == room and len(set(expected)) > 10


def test_the_system_text_precedes_the_image_in_the_users_turn(model: TinyModel) -> None:
    image = "<start_of_turn>user\n{system}\n\n\n\n<start_of_image>{image}<end_of_image>\n\n"
    assert model.source.system_template == f"<bos>{image}{{prompt}}<end_of_turn>\n<start_of_turn>model\n"
    assert model.source.prompt_template == model.source.system_template.replace("{system}\n\n", "")


def test_the_config_and_processor_as_published_give_the_same_captions(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "preprocessor_config.json", image_seq_length=16, **dict.fromkeys(PROCESSOR_NULLS))
    made = json.loads((folder / "config.json").read_text())
    made["text_config"] |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    for default in ("rope_parameters", "layer_types", "eos_token_id", "tie_word_embeddings", "rms_norm_eps"):
        del made["text_config"][default]
    parts = {part: made[part] for part in ("text_config", "vision_config")}
    (folder / "config.json").write_text(json.dumps(PUBLISHED | parts))
    source = Gemma3.load(folder)
    assert (source.context_tokens, source.stop_ids) == (256, (1, 6))
    assert [source.generate(*given, max_new_tokens=model.case.limit) for given in model.inputs] == model.expected


def test_the_published_dimensions_are_those_of_gemma_3_4b() -> None:
    config: Any = seeded.config("published")
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    assert 4.2e9 < sum(weights.numel() for weights in model.parameters()) < 4.4e9
    assert config.text_config.layer_types.count("full_attention") == 5
    assert model.model.multi_modal_projector.kernel_size == 4
