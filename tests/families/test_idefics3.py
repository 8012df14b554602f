"""What only Idefics3 and SmolVLM do: tiles and their text; the contract suite has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from benchmarks.seeded import idefics3 as seeded
from captioner.families.idefics3 import TEXT_TOKENS
from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel

TILE_TOKENS = 4


@pytest.fixture(params=get_args(seeded.ModelType))
def model(request: pytest.FixtureRequest, tiny_models: TinyModels) -> TinyModel:
    return tiny_models(request.param)


def test_the_requests_of_the_contract_suite_have_different_numbers_of_tiles(model: TinyModel) -> None:
    assert len({len(features) for features, _, _ in model.requests}) > 2


def test_the_context_ends_at_the_models_positions(model: TinyModel) -> None:
    image = model.source.image
    assert image.parts(*image.max_grid) * TILE_TOKENS + TEXT_TOKENS > model.source.context_tokens == 512


@pytest.mark.parametrize("grid", [(0, 0), (1, 2), (3, 1), (4, 4)])
def test_the_text_of_an_image_equals_that_of_transformers(model: TinyModel, grid: tuple[int, int]) -> None:
    expected = get_image_prompt_string(*grid, TILE_TOKENS, seeded.FENCE, seeded.IMAGE, seeded.WHOLE)
    assert model.kind.image_text(model.manifest, seeded.IMAGE, *grid) == expected


def test_position_ids_are_rounded_as_in_the_original(model: TinyModel, tmp_path: Path) -> None:
    sizes = {"size": {"longest_edge": 104}, "max_image_size": {"longest_edge": 52}}
    folder = model.changed(tmp_path, "preprocessor_config.json", **sizes)
    config = seeded.config("tiny", model.model_type)  # type: ignore[arg-type]
    config.vision_config.image_size, config.vision_config.patch_size = 52, 2
    torch.manual_seed(1)
    original = AutoModelForImageTextToText.from_config(config).eval()
    original.save_pretrained(folder)
    encoder = model.kind.load(folder).vision_encoder
    with torch.inference_mode():
        pixels = torch.randint(0, 256, (52, 52, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        values_1NCHW = (pixels / 127.5 - 1).permute(2, 0, 1)[None, None]
        expected = original.get_image_features(values_1NCHW).pooler_output[0]
        assert torch.allclose(encoder(pixels[None])[0], expected, atol=1e-4)


def test_the_published_dimensions_are_those_of_smolvlm_256m() -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(seeded.config("published", "smolvlm"))
    assert 2.5e8 < sum(weights.numel() for weights in model.parameters()) < 2.6e8
    assert model.model.image_seq_len == 64
