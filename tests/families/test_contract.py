"""What holds for every family: features, prompts and captions equal those of the published model in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from captioner.artifacts.manifest import PROMPT_FIELD, Generation
from captioner.decoders.rows import RowCopy
from captioner.errors import ModelUnsupported, ParameterInvalid
from captioner.families import FAMILIES, family
from export.onnx_export import export_vision_encoder, onnx_features
from tests.families.cases import CASES, Case
from tests.families.conftest import TinyModels
from tests.families.tiny_model import ASKED, TinyModel, noise
from tests.support.greedy import greedy_rows

Mark = pytest.MarkDecorator


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_models: TinyModels) -> TinyModel:
    return tiny_models(request.param)


def families(applies: Callable[[Case], object] = lambda case: True, exhaustive: tuple[str, ...] = ()) -> Mark:
    """Run a test with the tiny model of every family to which it applies; `exhaustive` ones not in the fast suite."""
    names = [
        pytest.param(name, marks=pytest.mark.exhaustive) if name in exhaustive else name
        for name, case in CASES.items()
        if applies(case)
    ]
    return pytest.mark.parametrize("model", names, indirect=True)


with_original_features = families(lambda case: case.original_features)
with_image_token = families(lambda case: "image_token_id" in case.source)
seeded_families = families(lambda case: case.seeded)
all_families = families()


def test_every_family_is_registered_by_its_model_type_and_has_a_case() -> None:
    assert list(CASES) == list(FAMILIES)
    assert [family(model_type).model_type for model_type in FAMILIES] == list(FAMILIES)


@all_families
def test_a_source_has_the_settings_of_its_folder(model: TinyModel) -> None:
    assert {name: getattr(model.source, name) for name in model.case.source} == model.case.source


@all_families
def test_prompt_ids_equal_those_of_the_original_processor(model: TinyModel) -> None:
    original = model.case.original_prompt_ids(model.folder)
    for size, text in ASKED:
        assert model.read(noise(size), text)[1] == original(noise(size), text)


@with_original_features
def test_features_equal_the_originals(model: TinyModel) -> None:
    assert model.case.original_features is not None
    original = model.case.original_features(model.folder)
    for size, _ in ASKED:
        pixels, _ = model.read(noise(size), "")
        with torch.inference_mode():
            assert torch.allclose(model.features(pixels[None])[0], original(noise(size)), atol=1e-4)


@all_families
def test_rows_of_different_ages_equal_generate(model: TinyModel) -> None:
    assert greedy_rows(model.decoder(), model.requests, model.source.stop_ids) == model.expected
    stopped = [ids[-1] in model.source.stop_ids for ids in model.expected]
    assert any(stopped) and not all(stopped), "some captions must end with a stop id, some at the limit"
    assert len({tuple(ids) for ids in model.expected}) > 4, "images and prompts must change the caption"


@all_families
def test_a_copied_row_continues_like_its_source(model: TinyModel) -> None:
    decoder = model.decoder(slots=4)
    for row, (features, prompt_ids, _) in enumerate(model.requests[:4]):
        decoder.prefill(row, features, prompt_ids)
    (_, source_ids, _), (_, other_ids, _) = model.requests[1:3]
    decoder.copy(RowCopy([1, 1], [0, 3], decoder.device), len(source_ids) - 1)
    rows = [source_ids, source_ids, other_ids, source_ids]
    positions = [len(ids) - 1 for ids in rows]
    logits = decoder.decode(torch.tensor([ids[-1] for ids in rows]), torch.tensor(positions), max(positions) + 1)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[3], logits[1])
    assert not torch.allclose(logits[2], logits[1])


@all_families
def test_the_previous_content_of_a_row_does_not_matter(model: TinyModel) -> None:
    decoder = model.decoder()
    for layer in [*decoder.text_layers, *getattr(decoder, "image_layers", [])]:
        for tensor in vars(layer).values():
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(torch.nan)
    assert greedy_rows(decoder, model.requests, model.source.stop_ids) == model.expected


@all_families
def test_a_step_reads_nothing_back_to_the_host(model: TinyModel) -> None:
    decoder = model.decoder(slots=4, device="meta")  # where reading a value raises
    ids = torch.zeros(3, dtype=torch.long, device="meta")
    assert decoder.decode(ids, ids, 7).shape == (3, decoder.vocabulary)


# The fast suite has one family for each encoder class; tests/export exports the others too.
@families(exhaustive=("blip", "concept-encoder-decoder", "idefics3", "paligemma", "vision-encoder-decoder"))
def test_the_exported_graph_gives_the_same_features_at_other_batch_sizes(model: TinyModel, tmp_path: Path) -> None:
    path = export_vision_encoder(model.source, tmp_path, {})
    image = model.source.image
    batches = [(5, (0, 0)), (1, (0, 0))]  # images and their grid
    if any(image.max_grid):
        batches = [(3, (2, 2)), (1, image.min_grid), (1, (4, 4)), (2, (1, 2)), (2, (5, 3))]
    for images, grid in batches:
        shape = (images, *image.pixel_size(*grid), 3)
        pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        features = model.features(pixels)
        tokens = image.parts(*grid) * model.manifest.feature_tokens
        assert features.shape == (images, tokens, model.manifest.feature_width)
        assert np.abs(onnx_features(path, pixels.numpy()) - features.numpy()).max() < 1e-4


@all_families
def test_the_published_decoder_is_a_text_model_without_vision_weights(model: TinyModel) -> None:
    folder = model.version / "decoder" if model.manifest else Path()
    assert json.loads((folder / "config.json").read_text())["architectures"] == [model.case.architecture]
    vision = {value.numpy().tobytes() for value in model.source.vision_encoder.state_dict().values() if _varies(value)}
    published = load_file(folder / "model.safetensors")
    assert not [name for name, value in published.items() if _varies(value) and value.numpy().tobytes() in vision]


def _varies(value: torch.Tensor) -> bool:
    """Return whether a tensor was drawn at random, unlike constants, which parts may share by chance."""
    return value.numel() > 1 and bool((value != value.flatten()[0]).any())


@seeded_families
def test_published_generation_settings_are_defaults_and_do_not_change_generate(
    model: TinyModel, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"num_beams": 3, "repetition_penalty": 1.5, "length_penalty": 0.5, "max_length": 17}
    changed = model.kind.load(model.changed(tmp_path, "generation_config.json", **settings))
    assert changed.generation == Generation(model.case.max_tokens, 1.5, 3, 0.5)
    written = [changed.generate(pixels, ids, max_new_tokens=model.case.limit) for pixels, ids in model.inputs[:4]]
    assert written == model.expected[:4]


@all_families
def test_generate_with_beams_returns_ids_up_to_the_stop_id(model: TinyModel) -> None:
    for pixels, prompt_ids in model.inputs[:4]:
        ids = model.source.generate(pixels, prompt_ids, max_new_tokens=model.case.limit, num_beams=3)
        assert set(ids[:-1]).isdisjoint(model.source.stop_ids)
        assert len(ids) == model.case.limit or ids[-1] in model.source.stop_ids


@pytest.mark.parametrize(
    ("model", "file_name", "changes", "reason"),
    [(name, *refused) for name, case in CASES.items() for refused in case.refused],
    indirect=["model"],
    ids=str,
)
def test_an_unsupported_setting_is_refused_by_name(
    model: TinyModel, tmp_path: Path, file_name: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelUnsupported) as refused:
        model.kind.load(model.changed(tmp_path, file_name, **changes))
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("model", "file_name", "changes", "reason"),
    [(name, *refused) for name, case in CASES.items() for refused in case.refused],
    indirect=["model"],
    ids=str,
)
def test_a_check_refuses_what_a_load_refuses_without_reading_the_weights(
    model: TinyModel, tmp_path: Path, file_name: str, changes: dict[str, Any], reason: str
) -> None:
    if model.kind.check(model.folder) is None:
        pytest.skip("this family reads its config only in load")
    folder = model.changed(tmp_path, file_name, **changes)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelUnsupported) as refused:
        model.kind.check(folder)
    assert reason in str(refused.value)


@all_families
def test_a_check_tells_what_the_source_will_be(model: TinyModel) -> None:
    outline, source = model.kind.check(model.folder), model.source
    if outline is None:
        pytest.skip("this family reads its config only in load")
    assert (outline.image, outline.context_tokens) == (source.image, source.context_tokens)
    assert outline.follows_instructions == (source.prompt_template != PROMPT_FIELD)


@seeded_families
def test_a_folder_without_a_processor_is_refused(model: TinyModel, tmp_path: Path) -> None:
    (model.changed(tmp_path, "config.json") / "preprocessor_config.json").unlink()
    with pytest.raises(ModelUnsupported, match=r"preprocessor_config\.json is missing"):
        model.kind.load(tmp_path)


@with_image_token
def test_a_prompt_with_the_image_token_is_refused(model: TinyModel) -> None:
    token = str(model.tokenizer.id_to_token(model.case.source["image_token_id"]))
    with pytest.raises(ParameterInvalid) as refused:
        model.read(noise((64, 64)), f"two {token} of them")
    assert token in str(refused.value)


@with_image_token
@pytest.mark.parametrize("change", [-1, 1])
def test_features_that_do_not_match_the_prompt_are_refused(model: TinyModel, change: int) -> None:
    features, prompt_ids, _ = model.requests[0]
    other = torch.zeros(len(features) + change, *features.shape[1:])
    counts = features.shape[:-1].numel(), other.shape[:-1].numel()
    with pytest.raises(ValueError, match="{} image tokens, the image {} features".format(*counts)):
        model.decoder(slots=1).prefill(0, other, prompt_ids)
