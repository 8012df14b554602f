"""What only BLIP does; the contract suite has the rest."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, BlipForConditionalGeneration

from benchmarks.seeded import blip as seeded
from tests.families.conftest import TinyModels
from tests.families.tiny_model import noise


def test_a_prompt_is_the_beginning_of_the_caption_as_in_the_original(tiny_models: TinyModels) -> None:
    model, text = tiny_models("blip"), "a photo of"
    original: Any = BlipForConditionalGeneration.from_pretrained(model.folder).eval()
    pixels, prompt_ids = model.read(noise((32, 32)), text)
    normalise: Any = model.source.vision_encoder.normalise
    theirs = AutoTokenizer.from_pretrained(model.folder)(text, return_tensors="pt")["input_ids"]  # [CLS] … [SEP]
    expected = original.generate(normalise(pixels[None]), theirs, max_new_tokens=20)
    assert prompt_ids[0] == model.source.start_ids[0] == seeded.TINY_TOKENS, "BOS stands for [CLS]"
    assert prompt_ids + model.source.generate(pixels, prompt_ids, max_new_tokens=20) == expected[0].tolist()
