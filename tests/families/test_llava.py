"""What only LLaVA does: chat templates, the selected layer of the tower; the contract suite has the rest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.seeded import llava as seeded
from captioner.decoders import prefix
from captioner.errors import ModelUnsupported, ParameterInvalid
from captioner.families.llava import SYSTEM, Llava
from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel, noise
from tests.support.greedy import greedy_rows

AS_PARTS = "{% for turn in messages %}{% for part in turn['content'] if part['type'] == 'image' %}" + (
    seeded.IMAGE + "\n{% endfor %}{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endfor %}{% endfor %}"
)
AS_PARTS_OF_ROLES = (
    "{% for turn in messages %}{{ turn['role'] }} {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}"
    + seeded.IMAGE
    + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
AS_TEXT_WITHOUT_SYSTEM = (
    "{% for turn in messages %}{% if turn['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "[{{ turn['content'] }}]{% endfor %}"
)
AS_TEXT = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> TinyModel:
    return tiny_models("llava")


def with_template(model: TinyModel, to: Path, template: str) -> Path:
    """Return a copy of the model folder with another chat template."""
    shutil.copytree(model.folder, to, dirs_exist_ok=True)
    (to / "chat_template.jinja").write_text(template)
    return to


def variant(folder: Path, to: Path, clip: bool, **changes: object) -> LlavaForConditionalGeneration:
    """Save the model with another tower or another selected layer to `to`."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = seeded.config("tiny").to_dict() | changes
    if clip:
        size: dict[str, Any] = {
            name: config["vision_config"][name] for name in ("hidden_size", "image_size", "patch_size")
        }
        heads: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
        config["vision_config"] = CLIPVisionConfig(**size, **heads).to_dict()
    torch.manual_seed(5)
    made = LlavaForConditionalGeneration(LlavaConfig(**config))
    made.eval()
    seeded.enlarge(made, 0)
    made.save_pretrained(to)
    return made


@pytest.mark.parametrize(
    ("published", "expected"), [({}, 512), ({"max_length": 4096}, 512), ({"max_new_tokens": 99}, 99)]
)
def test_a_published_limit_that_counts_the_image_is_ignored(
    model: TinyModel, tmp_path: Path, published: dict[str, object], expected: int
) -> None:
    folder = model.changed(tmp_path, "generation_config.json", **published)
    assert Llava.load(folder).generation.max_tokens == expected


@pytest.mark.parametrize(
    ("template", "prompt_template", "system_template"),
    [
        (AS_PARTS, "{image}\n{prompt}", ""),
        (AS_PARTS_OF_ROLES, "user {image}{prompt}", "system {system}user {image}{prompt}"),
        (AS_TEXT_WITHOUT_SYSTEM, "[{image}\n{prompt}]", ""),
        (AS_TEXT, "user: {image}\n{prompt}\n", "system: {system}\nuser: {image}\n{prompt}\n"),
    ],
)
def test_the_image_stands_before_the_prompt_if_the_template_leaves_it_to_the_user(
    model: TinyModel, tmp_path: Path, template: str, prompt_template: str, system_template: str
) -> None:
    source = Llava.load(with_template(model, tmp_path, template))
    assert source.system_template == system_template
    assert source.prompt_template == (system_template.replace("{system}", SYSTEM) or prompt_template)
    assert source.start_ids == (seeded.TINY[seeded.BOS],), "the template writes no BOS, so the tokenizer does"


def test_a_system_text_fills_its_turn_even_if_it_looks_like_a_field(model: TinyModel, tmp_path: Path) -> None:
    source = Llava.load(with_template(model, tmp_path, AS_TEXT))
    manifest = replace(model.manifest, system_template=source.system_template, start_ids=source.start_ids)
    ids = Llava.prompt_ids(model.tokenizer, manifest, "{image} a {system}", system="b {prompt}")
    image = seeded.IMAGE * manifest.feature_tokens
    text = f"system: b {{prompt}}\nuser: {image}\n{{image}} a {{system}}\n"
    assert ids == [*source.start_ids, *model.tokenizer.encode(text, add_special_tokens=False).ids]
    with pytest.raises(ParameterInvalid, match="reserved for the image"):
        Llava.prompt_ids(model.tokenizer, manifest, "a", system=f"b {seeded.IMAGE}")


def test_a_processors_template_takes_precedence_over_the_tokenizers(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "config.json")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": AS_PARTS}))
    assert Llava.load(folder).prompt_template == "{image}\n{prompt}"


@pytest.mark.parametrize("template", ["{{ 'nothing' }}", AS_PARTS + AS_PARTS, "{{ raise_exception('no') }}"])
def test_a_template_without_exactly_one_image_and_prompt_is_refused(
    model: TinyModel, tmp_path: Path, template: str
) -> None:
    with pytest.raises(ModelUnsupported, match="exactly once"):
        Llava.load(with_template(model, tmp_path, template))


@pytest.mark.parametrize(
    ("clip", "layer", "strategy", "tokens", "layers"),
    [
        (False, -2, "full", 16, 2),
        (False, -1, "full", 16, 3),
        (False, 1, "full", 16, 1),
        (False, 2, "default", 15, 2),
        (True, -2, "default", 16, 2),
        (True, 3, "full", 17, 3),
    ],
)
def test_features_are_those_of_the_selected_layer_and_no_layer_above_it_runs(
    model: TinyModel, tmp_path: Path, clip: bool, layer: int, strategy: str, tokens: int, layers: int
) -> None:
    changes = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    original = variant(model.folder, tmp_path, clip, **changes)
    encoder = Llava.load(tmp_path).vision_encoder
    pixels, _ = model.read(noise((90, 70)), "")
    values = SiglipImageProcessorPil.from_pretrained(model.folder)(noise((90, 70)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = original.get_image_features(values, **changes).pooler_output[0]
        features = encoder(pixels[None])[0]
    assert features.shape == (tokens, 32)
    assert torch.allclose(features, expected, atol=1e-4)
    assert len(encoder.get_submodule("layers")) == layers  # type: ignore[arg-type]


def test_a_prompt_longer_than_one_prefill_pass_gives_the_same_captions(
    model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "PREFILL_QUERIES", 7)
    assert greedy_rows(model.decoder(), model.requests, model.source.stop_ids) == model.expected


def test_bf16_logits_are_close_to_those_of_fp32(model: TinyModel) -> None:
    features, ids, _ = model.requests[0]
    logits = []
    for decoder in (model.decoder(slots=1), model.decoder(slots=1, precision="bf16")):
        decoder.prefill(0, features, ids)
        logits.append(decoder.decode(torch.tensor([ids[-1]]), torch.tensor([len(ids) - 1]), len(ids)).float())
    assert torch.nn.functional.cosine_similarity(logits[0], logits[1]) > 0.99


def test_the_cache_has_the_key_value_heads_of_the_language_model(model: TinyModel) -> None:
    decoder = model.decoder(slots=1)
    assert decoder.vocabulary == 300
    assert decoder.shape == (2, 2, 8, model.source.context_tokens, 0)


def test_the_published_dimensions_are_those_of_joycaption() -> None:
    config = seeded.config("published")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    assert config.image_seq_length == 729
    assert 8.4e9 < sum(weights.numel() for weights in model.parameters()) < 8.6e9
