"""Idefics3 and SmolVLM, tiny and seeded: what is served is what the published models do with their own processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from benchmarks.seeded import idefics3 as seeded
from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.errors import ModelUnsupported, ParameterInvalid
from captioner.families import family
from captioner.families.base import Source
from captioner.families.idefics3 import WORDS_TOKENS, Idefics3, SmolVLM
from captioner.image.decode import load_pixels
from captioner.image.spec import ImageSpec
from export.onnx_export import export_vision_encoder, onnx_features
from tests.image.test_decode import file
from tests.support.greedy import Request, greedy_rows, publish

TOKENS, LIMIT = 4, 24  # of a tile, of a caption
ASKED = [((64, 64), "what is it?"), ((64, 9), ""), ((40, 90), "tell it all, please"), ((90, 70), "and a name: é 猫")]


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", params=get_args(seeded.ModelType))
def model_type(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def folder(model_type: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(f"tiny-{model_type}")
    seeded.save(made, "tiny", model_type=model_type)
    return made


@pytest.fixture(scope="module")
def source(model_type: str, folder: Path) -> Source:
    return family(model_type).load(folder)


@pytest.fixture(scope="module")
def original(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(folder)
    model.eval()
    return model


@pytest.fixture(scope="module")
def version(model_type: str, source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    made = tmp_path_factory.mktemp(f"published-{model_type}")
    return made, publish(source, model_type, made)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def asked(version: tuple[Path, Manifest], tokenizer: Tokenizer) -> list[tuple[torch.Tensor, list[int]]]:
    """Pixels and prompt ids of images with different numbers of tiles."""
    made = []
    for seed, (size, text) in enumerate(ASKED):
        pixels, info = load_pixels(file(noise(size, seed), "PNG"), version[1].image)
        ids = Idefics3.prompt_ids(tokenizer, version[1], text, info.tile_rows, info.tile_columns)
        made.append((torch.from_numpy(pixels.copy()), ids))
    return made


@pytest.fixture(scope="module")
def requests(source: Source, asked: list[tuple[torch.Tensor, list[int]]]) -> list[Request]:
    with torch.inference_mode():
        return [(source.vision_encoder(pixels[None])[0], ids, LIMIT) for pixels, ids in asked]


@pytest.fixture(scope="module")
def expected(source: Source, asked: list[tuple[torch.Tensor, list[int]]]) -> list[list[int]]:
    return [source.generate(pixels, ids, max_new_tokens=LIMIT) for pixels, ids in asked]


def served(model_type: str, version: tuple[Path, Manifest]) -> Decoder:
    decoder = family(model_type).decoder(*version, "fp32", torch.device("cpu"))
    decoder.allocate(len(ASKED))
    return decoder


def test_both_types_are_registered() -> None:
    assert (family("idefics3"), family("smolvlm")) == (Idefics3, SmolVLM)


def test_a_source_carries_what_the_folder_says(source: Source) -> None:
    special = seeded.special_ids("tiny")
    assert source.image == ImageSpec(32, 32, "lanczos", longest_px=128)
    assert (source.image_token_id, source.start_ids) == (special[seeded.IMAGE], ())
    assert source.stop_ids == (special[seeded.TURN],)
    assert source.context_tokens == 512, "its positions; an image and a text could take more"
    assert (source.image.most_tiles**2 + 1) * TOKENS + WORDS_TOKENS > 512


@pytest.mark.parametrize(("size", "text"), [*ASKED, ((200, 30), "wide"), ((30, 200), "tall")])
def test_prompt_ids_are_those_of_the_models_own_processor(
    model_type: str,
    folder: Path,
    version: tuple[Path, Manifest],
    tokenizer: Tokenizer,
    size: tuple[int, int],
    text: str,
) -> None:
    image = noise(size, 7)
    processor = Idefics3Processor(
        seeded.PROCESSORS[model_type].from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        image_seq_len=TOKENS,
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
    chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
    theirs = processor(text=[rendered], images=[[image]])["input_ids"][0]
    _, info = load_pixels(file(image, "PNG"), version[1].image)
    ours = family(model_type).prompt_ids(tokenizer, version[1], text, info.tile_rows, info.tile_columns)
    assert ours == list(theirs)


@pytest.mark.parametrize("grid", [(0, 0), (1, 2), (3, 1), (4, 4)])
def test_the_images_text_is_smolvlms_own(version: tuple[Path, Manifest], grid: tuple[int, int]) -> None:
    theirs = get_image_prompt_string(*grid, TOKENS, seeded.FENCE, seeded.IMAGE, seeded.WHOLE)
    assert SmolVLM.image_text(version[1], seeded.IMAGE, *grid) == theirs


def test_a_prompt_with_the_images_token_is_refused(version: tuple[Path, Manifest], tokenizer: Tokenizer) -> None:
    with pytest.raises(ParameterInvalid, match="<image>"):
        Idefics3.prompt_ids(tokenizer, version[1], "one <image> more", 1, 2)


@pytest.mark.parametrize("size", [size for size, _ in ASKED])
def test_features_are_the_originals_for_any_number_of_tiles(
    model_type: Any, folder: Path, source: Source, original: PreTrainedModel, size: tuple[int, int]
) -> None:
    image = noise(size, 3)
    processor: Any = seeded.PROCESSORS[model_type].from_pretrained(folder)
    made = processor([[image]], return_tensors="pt")
    pixels, _ = load_pixels(file(image, "PNG"), source.image)
    with torch.inference_mode():
        theirs = original.get_image_features(made["pixel_values"], made["pixel_attention_mask"]).pooler_output[0]  # type: ignore[operator]
        ours = source.vision_encoder(torch.from_numpy(pixels.copy())[None])[0]
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_positions_are_rounded_as_the_original_rounds_them(model_type: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = seeded.config("tiny", model_type)
    config.vision_config.image_size, config.vision_config.patch_size = 52, 2
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path)
    sizes = {"size": {"longest_edge": 104}, "max_image_size": {"longest_edge": 52}}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    made = Idefics3.load(tmp_path)
    pixels = torch.from_numpy(np.array(noise((52, 52), 2)))
    with torch.inference_mode():
        values_1NCHW = (pixels / 127.5 - 1).permute(2, 0, 1)[None, None]
        theirs = model.get_image_features(values_1NCHW).pooler_output[0]
        assert torch.allclose(made.vision_encoder(pixels[None])[0], theirs, atol=1e-4)


def test_features_of_the_onnx_graph_are_the_same_for_other_numbers_of_images_and_tiles(
    source: Source, tmp_path: Path
) -> None:
    path = export_vision_encoder(source, tmp_path, {})
    torch.manual_seed(0)
    for images, tiles in [(3, 5), (1, 1), (1, 17), (2, 3)]:
        pixels = torch.randint(0, 256, (images, tiles * 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            ours = source.vision_encoder(pixels)
        assert ours.shape == (images, tiles * TOKENS, 32)
        assert torch.allclose(torch.from_numpy(onnx_features(path, pixels.numpy())), ours, atol=1e-4)


def test_rows_of_different_ages_and_tiles_are_written_as_the_original_writes_them(
    model_type: str, version: tuple[Path, Manifest], source: Source, requests: list[Request], expected: list[list[int]]
) -> None:
    assert len({len(features) for features, _, _ in requests}) > 2, "not enough different numbers of tiles"
    assert greedy_rows(served(model_type, version), requests, source.stop_ids) == expected
    assert len({tuple(ids) for ids in expected}) == len(expected), "images and prompts make no difference"
    assert any(ids[-1] in source.stop_ids for ids in expected), "none ends by itself"


def test_what_a_row_held_before_does_not_matter(
    model_type: str, version: tuple[Path, Manifest], source: Source, requests: list[Request], expected: list[list[int]]
) -> None:
    decoder = served(model_type, version)
    for layer in decoder.text_layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    assert greedy_rows(decoder, requests, source.stop_ids) == expected


def test_features_that_do_not_match_the_prompt_are_refused(
    model_type: str, version: tuple[Path, Manifest], requests: list[Request]
) -> None:
    features, ids, _ = requests[0]
    with pytest.raises(ValueError, match=f"{len(features)} image tokens, the image {len(features) - TOKENS} features"):
        served(model_type, version).prefill(0, features[TOKENS:], ids)


def test_the_published_decoder_is_a_plain_language_model(version: tuple[Path, Manifest]) -> None:
    config = json.loads((version[0] / "decoder" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("file_name", "changes", "named"),
    [
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ("preprocessor_config.json", {"do_image_splitting": False}, "do_image_splitting False"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize False"),
        ("preprocessor_config.json", {"resample": 0}, "resample 0"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}, "size {'height': 64"),
        ("preprocessor_config.json", {"size": {"longest_edge": 8192}}, "size 8192"),
        ("preprocessor_config.json", {"size": {"longest_edge": 127}}, "size 127"),
        ("preprocessor_config.json", {"max_image_size": None}, "max_image_size None"),
    ],
)
def test_what_would_be_served_wrongly_is_refused_by_name(
    model_type: str, folder: Path, tmp_path: Path, file_name: str, changes: dict[str, object], named: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / file_name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelUnsupported, match=named):
        family(model_type).load(tmp_path)


def test_the_published_size_is_smolvlms() -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(seeded.config("published", "smolvlm"))
    assert 2.5e8 < sum(weights.numel() for weights in model.parameters()) < 2.6e8
    assert model.model.image_seq_len == 64
