"""GIT, tiny and seeded: what is served is what the published model does with its own processor and generate()."""

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
from transformers import AutoTokenizer, GitForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.seeded import git as seeded
from captioner.artifacts.manifest import Generation, Manifest
from captioner.errors import ModelUnsupported
from captioner.families.base import Source
from captioner.families.git import Git, GitDecoder
from captioner.image.decode import load_pixels
from export.onnx_export import export_vision_encoder, onnx_features
from tests.image.test_decode import file
from tests.support.greedy import greedy_rows, pictures, publish

LIMIT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny-git")
    seeded.save(made, "tiny")
    return made


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return Git.load(folder)


@pytest.fixture(scope="module")
def original(folder: Path) -> GitForCausalLM:
    model: GitForCausalLM = GitForCausalLM.from_pretrained(folder).eval()
    return model


@pytest.fixture(scope="module")
def version(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    made = tmp_path_factory.mktemp("published-git")
    return made, publish(source, "git", made)


def served(version: tuple[Path, Manifest], slots: int = 4, device: str = "cpu") -> GitDecoder:
    decoder = Git.decoder(*version, "fp32", torch.device(device))
    decoder.allocate(slots)
    assert isinstance(decoder, GitDecoder)
    return decoder


def features(source: Source, pixels_BHWC: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = source.vision_encoder(pixels_BHWC)
    return made


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def changed(folder: Path, to: Path, file_name: str, **changes: Any) -> Path:
    """A copy of the model folder with keys of one JSON file changed, one level deep in configs of towers."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    values = json.loads((to / file_name).read_text())
    for key, value in changes.items():
        values[key] = values[key] | value if key.endswith("_config") else value
    (to / file_name).write_text(json.dumps(values))
    return to


@pytest.mark.parametrize("size", [(90, 40), (31, 77), (32, 32)])
def test_features_are_the_originals(
    folder: Path, source: Source, original: GitForCausalLM, size: tuple[int, int]
) -> None:
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(noise(*size), return_tensors="pt")["pixel_values"]
    pixels, _ = load_pixels(file(noise(*size), "PNG"), source.image)
    with torch.inference_mode():
        expected = original.git.visual_projection(original.git.image_encoder(theirs).last_hidden_state)
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


@torch.inference_mode()
def test_a_step_gives_the_logits_of_one_pass_over_image_and_text(
    source: Source, version: tuple[Path, Manifest], original: GitForCausalLM
) -> None:
    decoder, pixels, ids = served(version), pictures(1, 32), [*source.start_ids, 30, 31, 32, 33]
    whole = original(torch.tensor([ids]), pixel_values=source.vision_encoder.normalise(pixels), use_cache=False)  # type: ignore[operator]
    decoder.prefill(0, features(source, pixels)[0], ids)
    step = decoder.decode(torch.tensor(ids[-1:]), torch.tensor([len(ids) - 1]), len(ids))
    assert torch.allclose(step, whole.logits[:, -1], atol=1e-4)


def test_a_prompt_is_the_beginning_of_the_caption_as_in_the_original(
    folder: Path, source: Source, version: tuple[Path, Manifest], original: Any
) -> None:
    pixels, text = pictures(1, 32), "a photo of"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = torch.tensor([[tokenizer.cls_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    normalised = source.vision_encoder.normalise(pixels)  # type: ignore[operator]
    expected = original.generate(theirs, pixel_values=normalised, max_new_tokens=LIMIT)[0].tolist()
    prompt_ids = Git.prompt_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), version[1], text)
    assert prompt_ids + source.generate(pixels[0], prompt_ids, max_new_tokens=LIMIT) == expected
    alone = original.generate(pixel_values=normalised, max_new_tokens=LIMIT)[0].tolist()
    assert [*source.start_ids, *source.generate(pixels[0], [*source.start_ids], max_new_tokens=LIMIT)] == alone


def test_a_copied_row_takes_its_image_along(source: Source, version: tuple[Path, Manifest]) -> None:
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
    request = [(image, [*source.start_ids, 20], LIMIT)]
    assert greedy_rows(poisoned, request, ()) == greedy_rows(clean, request, ())


def test_a_step_reads_nothing_back(version: tuple[Path, Manifest]) -> None:
    decoder = served(version, device="meta")  # where there is nothing to read: any attempt raises
    ids = torch.zeros(3, dtype=torch.long, device="meta")
    assert decoder.decode(ids, ids, 7).shape == (3, decoder.vocabulary)


def test_a_slot_has_room_for_the_image_and_the_whole_context(source: Source, version: tuple[Path, Manifest]) -> None:
    decoder = served(version)
    assert decoder.shape.positions == 17 + source.context_tokens
    assert decoder.context_tokens == source.context_tokens
    ids = [*source.start_ids, *[20] * (source.context_tokens - 1)]
    decoder.prefill(0, features(source, pictures(1, 32))[0], ids)
    last = torch.tensor([len(ids) - 1])
    assert decoder.decode(torch.tensor(ids[-1:]), last, len(ids)).isfinite().all()


def test_the_exported_graph_gives_the_same_features_at_any_batch_size(source: Source, tmp_path: Path) -> None:
    path = export_vision_encoder(source, tmp_path, {})
    pixels = pictures(5, 32, seed=2)
    assert np.abs(onnx_features(path, pixels.numpy()) - features(source, pixels).numpy()).max() < 1e-4


def test_the_published_decoder_holds_no_vision_weights(
    version: tuple[Path, Manifest], original: GitForCausalLM
) -> None:
    with safe_open(version[0] / "decoder" / "model.safetensors", "pt") as weights:
        sizes = {name: weights.get_tensor(name).numel() for name in weights.keys()}  # noqa: SIM118
    vision = sum(size for name, size in sizes.items() if "image_encoder" in name)
    text = original.git.embeddings, original.git.encoder, original.output
    assert vision < 20, "what transformers needs to build a tower at all"
    assert sum(sizes.values()) < 150 + sum(weight.numel() for part in text for weight in part.parameters())


def test_what_the_model_publishes_is_a_default_and_never_sneaks_into_generate(
    folder: Path, source: Source, tmp_path: Path
) -> None:
    published = {"num_beams": 3, "repetition_penalty": 1.5, "length_penalty": 0.5, "max_length": 17}
    told = Git.load(changed(folder, tmp_path, "generation_config.json", **published))
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
        ("config.json", {"num_image_with_embedding": 6}, "num_image_with_embedding is 6"),
        ("config.json", {"vision_config": {"image_size": 48}}, "image_size is 48"),
        ("generation_config.json", {"eos_token_id": None}, "eos_token_id None"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop False"),
    ],
)
def test_what_would_be_served_wrongly_is_refused_by_name(
    folder: Path, tmp_path: Path, file_name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelUnsupported, match=named):
        Git.load(changed(folder, tmp_path, file_name, **changes))
