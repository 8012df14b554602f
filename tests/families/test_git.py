"""What only GIT does: image and text share one cache; the contract suite has the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GitForCausalLM

from tests.families.conftest import TinyModels
from tests.families.tiny_model import TinyModel, noise


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> TinyModel:
    return tiny_models("git")


@pytest.fixture(scope="module")
def original(model: TinyModel) -> Any:
    return GitForCausalLM.from_pretrained(model.folder).eval()


@torch.inference_mode()
def test_a_step_gives_the_logits_of_one_pass_over_image_and_text(model: TinyModel, original: Any) -> None:
    (pixels, _), ids = model.read(noise((32, 32)), ""), [*model.source.start_ids, 30, 31, 32, 33]
    normalise: Any = model.source.vision_encoder.normalise
    whole = original(torch.tensor([ids]), pixel_values=normalise(pixels[None]), use_cache=False)
    decoder = model.decoder(slots=1)
    decoder.prefill(0, model.features(pixels[None])[0], ids)
    step = decoder.decode(torch.tensor(ids[-1:]), torch.tensor([len(ids) - 1]), len(ids))
    assert torch.allclose(step, whole.logits[:, -1], atol=1e-4)


def test_a_prompt_is_the_beginning_of_the_caption_as_in_the_original(model: TinyModel, original: Any) -> None:
    text = "a photo of"
    pixels, prompt_ids = model.read(noise((32, 32)), text)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    theirs = torch.tensor([[tokenizer.cls_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    normalise: Any = model.source.vision_encoder.normalise
    values = normalise(pixels[None])
    expected = original.generate(theirs, pixel_values=values, max_new_tokens=20)[0].tolist()
    assert prompt_ids + model.source.generate(pixels, prompt_ids, max_new_tokens=20) == expected
    without_prompt = original.generate(pixel_values=values, max_new_tokens=20)[0].tolist()
    start_ids = [*model.source.start_ids]
    assert start_ids + model.source.generate(pixels, start_ids, max_new_tokens=20) == without_prompt


def test_a_slot_holds_the_image_and_the_whole_context(model: TinyModel) -> None:
    decoder, context_tokens = model.decoder(slots=1), model.source.context_tokens
    assert decoder.shape.positions == 17 + context_tokens
    assert decoder.context_tokens == context_tokens
    ids = [*model.source.start_ids, *[20] * (context_tokens - 1)]
    decoder.prefill(0, model.requests[0][0], ids)
    assert decoder.decode(torch.tensor(ids[-1:]), torch.tensor([len(ids) - 1]), len(ids)).isfinite().all()


def test_the_published_decoder_has_only_the_smallest_possible_vision_tower(model: TinyModel, original: Any) -> None:
    folder = model.version / "decoder" if model.manifest else None
    sizes = {name: weights.numel() for name, weights in load_file(f"{folder}/model.safetensors").items()}
    text = original.git.embeddings, original.git.encoder, original.output
    assert sum(size for name, size in sizes.items() if "image_encoder" in name) < 20
    assert sum(sizes.values()) < 150 + sum(weights.numel() for part in text for weights in part.parameters())
