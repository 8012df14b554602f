"""Form (b) of the embedded captioner, on a tiny language model: it learns, and what it says depends on the picture."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.dataset import Caption
from training.instructed import IMAGENET_CONCEPTS, OWN_CONCEPTS, Instructed, Seen
from training.tokenizer import CaptionTokenizer

TEXTS = ("A brown dog on a red sofa", "Two boats on a lake")
WORDS = ("dog", "boat")
ROWS = [[Caption(text, "medium")] for text in TEXTS]


@pytest.fixture
def seen() -> Seen:
    torch.manual_seed(1)
    concepts = IMAGENET_CONCEPTS + OWN_CONCEPTS
    words = torch.arange(2)[:, None].expand(2, concepts)
    return Seen(torch.rand(2, 10, 1280), words, torch.zeros(2, concepts))


@pytest.fixture
def model() -> Instructed:
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.learn([*TEXTS, "Medium: Short: Caption:\n"], vocabulary=320)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return Instructed(LlamaForCausalLM(config), tokenizer.fast, WORDS, list(TEXTS))


def test_only_adapter_and_prefix_are_trained(model: Instructed) -> None:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_" in name for name in trained)
    assert all("lora_" in name or not name.startswith("language.") for name in trained)


def test_the_loss_of_packed_captions_is_that_of_each_alone(model: Instructed, seen: Seen) -> None:
    model.eval()
    chance = random.Random(0)
    both = [Caption(TEXTS[0], "medium"), Caption(TEXTS[1], "short")]
    one = seen[[0]]
    sizes = [len(model.tokenizer.encode(" " + caption.text)) + 1 for caption in both]
    with torch.inference_mode():
        alone = [float(model.loss(one, [[caption]], 0, chance, 0)) for caption in both]
        packed = float(model.loss(one, [both], 0, chance, 0))
    expected = sum(loss * size for loss, size in zip(alone, sizes, strict=True)) / sum(sizes)
    assert packed == pytest.approx(expected, abs=0.03)  # bf16


def test_it_learns_to_tell_two_pictures_apart(model: Instructed, seen: Seen) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    chance = random.Random(0)
    for _ in range(120):
        loss = model.loss(seen, ROWS, 0, chance, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert model.write(seen, "medium") == list(TEXTS)
