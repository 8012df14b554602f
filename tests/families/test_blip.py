"""BLIP, tiny and seeded: what is served is what the published model does with its own processor and generate()."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.seeded import blip as seeded
from captioner.artifacts.manifest import Generation, Manifest
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.errors import ModelUnsupported
from captioner.families.base import Source
from captioner.families.blip import Blip
from captioner.image.decode import load_pixels
from export.onnx_export import export_vision_encoder, onnx_features
from tests.image.test_decode import file
from tests.support.greedy import greedy_rows, pictures, publish

LIMIT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny-blip")
    seeded.save(made, "tiny")
    return made


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return Blip.load(folder)


@pytest.fixture(scope="module")
def original(folder: Path) -> BlipForConditionalGeneration:
    model: BlipForConditionalGeneration = BlipForConditionalGeneration.from_pretrained(folder).eval()
    return model


@pytest.fixture(scope="module")
def version(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    made = tmp_path_factory.mktemp("published-blip")
    return made, publish(source, "blip", made)


def served(version: tuple[Path, Manifest], slots: int = 4, device: str = "cpu") -> CrossAttentionDecoder:
    decoder = Blip.decoder(*version, "fp32", torch.device(device))
    decoder.allocate(slots)
    assert isinstance(decoder, CrossAttentionDecoder)
    return decoder


def features(source: Source, pixels_BHWC: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = source.vision_encoder(pixels_BHWC)
    return made


def changed(folder: Path, to: Path, file_name: str, **changes: Any) -> Path:
    """A copy of the model folder with keys of one JSON file changed, one level deep."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    values = json.loads((to / file_name).read_text())
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) else value
    (to / file_name).write_text(json.dumps(values))
    return to


@pytest.mark.parametrize("size", [(90, 40), (31, 77), (32, 32)])
def test_the_image_is_prepared_as_blips_own_processor_does_it(
    folder: Path, source: Source, original: BlipForConditionalGeneration, size: tuple[int, int]
) -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = BlipImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    pixels, _ = load_pixels(file(image, "PNG"), source.image)
    with torch.inference_mode():
        expected = original.vision_model(pixel_values=theirs).last_hidden_state
    assert float((features(source, torch.tensor(pixels)[None]) - expected).abs().max()) < 1e-4


def test_rows_of_different_ages_write_what_generate_writes(source: Source, version: tuple[Path, Manifest]) -> None:
    pixels = pictures(8, 32)
    prompts = [[*source.start_ids, *range(20, 20 + count)] for count in (0, 3, 0, 1, 7, 0, 2, 0)]
    expected = [
        source.generate(image, prompt, max_new_tokens=LIMIT) for image, prompt in zip(pixels, prompts, strict=True)
    ]
    requests = [(image, prompt, LIMIT) for image, prompt in zip(features(source, pixels), prompts, strict=True)]
    assert greedy_rows(served(version, 8), requests, source.stop_ids) == expected
    lengths = {len(ids) for ids in expected}
    assert LIMIT in lengths and len(lengths) > 3, "captions that end by themselves, and some that do not"
    assert len({tuple(ids) for ids in expected}) > 5, "different images, different captions"


def test_a_prompt_is_the_beginning_of_the_caption_as_in_the_original(
    folder: Path, source: Source, version: tuple[Path, Manifest], original: BlipForConditionalGeneration
) -> None:
    pixels, text = pictures(1, 32), "a photo of"
    theirs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]  # [CLS] … [SEP]
    expected = original.generate(source.vision_encoder.normalise(pixels), theirs, max_new_tokens=LIMIT)  # type: ignore[operator]
    prompt_ids = Blip.prompt_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), version[1], text)
    assert prompt_ids[0] == source.start_ids[0] == seeded.TINY_TOKENS
    assert prompt_ids + source.generate(pixels[0], prompt_ids, max_new_tokens=LIMIT) == expected[0].tolist()


def test_a_copied_row_goes_on_as_its_source_would(source: Source, version: tuple[Path, Manifest]) -> None:
    decoder = served(version)
    for row, image in enumerate(features(source, pictures(4, 32))):
        decoder.prefill(row, image, [*source.start_ids, 20, 21, 22])
    decoder.copy([1, 1], [0, 3], 3)
    logits = decoder.decode(torch.tensor([22] * 4), torch.tensor([3] * 4), 4)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[3], logits[1])
    assert not torch.allclose(logits[2], logits[1])


def test_what_a_row_held_before_does_not_matter(source: Source, version: tuple[Path, Manifest]) -> None:
    image = features(source, pictures(1, 32))[0]
    clean, poisoned = served(version), served(version)
    for layer in poisoned.text_layers:
        layer.keys.fill_(torch.nan), layer.values.fill_(torch.inf)
    for cross in poisoned.image_layers:
        cross._keys.fill_(torch.nan), cross._values.fill_(torch.inf)
    request = [(image, [*source.start_ids, 20], LIMIT)]
    assert greedy_rows(poisoned, request, ()) == greedy_rows(clean, request, ())


def test_a_step_reads_nothing_back(version: tuple[Path, Manifest]) -> None:
    decoder = served(version, device="meta")  # where there is nothing to read: any attempt raises
    ids = torch.zeros(3, dtype=torch.long, device="meta")
    assert decoder.decode(ids, ids, 7).shape == (3, decoder.vocabulary)


def test_the_exported_graph_gives_the_same_features_at_any_batch_size(source: Source, tmp_path: Path) -> None:
    path = export_vision_encoder(source, tmp_path, {})
    pixels = pictures(5, 32, seed=2)
    assert np.abs(onnx_features(path, pixels.numpy()) - features(source, pixels).numpy()).max() < 1e-4


def test_the_published_decoder_holds_no_vision_weights(version: tuple[Path, Manifest]) -> None:
    with safe_open(version[0] / "decoder" / "model.safetensors", "pt") as weights:
        assert {name.split(".")[0] for name in weights.keys()} == {"bert", "cls"}  # noqa: SIM118


def test_what_the_model_publishes_is_a_default_and_never_sneaks_into_generate(
    folder: Path, source: Source, tmp_path: Path
) -> None:
    published = {"num_beams": 3, "repetition_penalty": 1.5, "length_penalty": 0.5, "max_length": 17}
    told = Blip.load(changed(folder, tmp_path, "generation_config.json", **published))
    assert told.generation == Generation(16, 1.5, 3, 0.5)
    for image in pictures(4, 32):
        greedy = source.generate(image, [*source.start_ids], max_new_tokens=LIMIT)
        assert told.generate(image, [*source.start_ids], max_new_tokens=LIMIT) == greedy


def test_a_beam_searchs_caption_ends_with_its_end(source: Source) -> None:
    for image in pictures(4, 32):
        ids = source.generate(image, [*source.start_ids], max_new_tokens=LIMIT, num_beams=3)
        assert set(ids[:-1]).isdisjoint(source.stop_ids)
        assert len(ids) == LIMIT or ids[-1] in source.stop_ids


@pytest.mark.parametrize(
    ("file_name", "changes", "named"),
    [
        ("config.json", {"text_config": {"bos_token_id": None}}, "bos_token_id is None"),
        ("config.json", {"text_config": {"is_decoder": False}}, "is_decoder False"),
        ("config.json", {"vision_config": {"image_size": 48}}, "image_size is 48"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize False"),
        ("preprocessor_config.json", {"resample": 4}, "resample 4"),
    ],
)
def test_what_would_be_served_wrongly_is_refused_by_name(
    folder: Path, tmp_path: Path, file_name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelUnsupported, match=named):
        Blip.load(changed(folder, tmp_path, file_name, **changes))


def test_a_folder_without_a_processor_is_refused(folder: Path, tmp_path: Path) -> None:
    (changed(folder, tmp_path, "config.json") / "preprocessor_config.json").unlink()
    with pytest.raises(ModelUnsupported, match=r"preprocessor_config\.json is missing"):
        Blip.load(tmp_path)
