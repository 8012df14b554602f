"""Precisions: the requested precision is loaded, or it is refused with the reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.load_weights import PRECISIONS, Precision, load_weights
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence
from captioner.errors import StartupRefused

CPU = torch.device("cpu")
WIDTH = 128  # at least: nf4 packs blocks of 64
IMAGE_TOKENS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published decoder whose layers every precision can quantise."""
    config = GPT2Config(
        vocab_size=256, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=4, add_cross_attention=True,
        initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("published")
    GPT2LMHeadModel(config).save_pretrained(made / "decoder")
    return made


def captions(folder: Path, precision: Precision) -> tuple[CrossAttentionDecoder, list[list[int]]]:
    """Return the decoder and its captions of four images decoded together."""
    decoder = CrossAttentionDecoder(load_weights(GPT2LMHeadModel, folder, precision, CPU), 32, IMAGE_TOKENS)
    engine = Engine(Runner(decoder, 4), (), max_waiting=0)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(4, IMAGE_TOKENS, WIDTH, generator=generator)
    sequences = [Sequence([0], Sampling(), 8, features=each) for each in features]
    for sequence in sequences:
        engine.admit(sequence)
        engine.submit(sequence)
    for _ in range(10):
        engine.step()
    assert [sequence.error for sequence in sequences] == [None] * 4
    return decoder, [sequence.token_ids for sequence in sequences]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_each_precision_gives_captions_and_saves_memory(folder: Path, precision: Precision) -> None:
    full, _ = captions(folder, "fp32")
    decoder, texts = captions(folder, precision)
    assert all(len(text) == 8 for text in texts)
    assert len({tuple(text) for text in texts}) > 1, "the image does not change the caption"
    blocks = 12 * WIDTH * WIDTH + 4 * WIDTH * WIDTH  # the matrices of one layer, including cross-attention
    saved = {"fp32": 0, "bf16": full.weight_bytes // 2, "int8": 2 * blocks * 3, "nf4": 2 * blocks * 3.5}[precision]
    assert full.weight_bytes - decoder.weight_bytes == pytest.approx(saved, rel=0.1)


def test_bf16_keeps_the_first_tokens_of_fp32(folder: Path) -> None:
    _, expected = captions(folder, "fp32")
    decoder, found = captions(folder, "bf16")
    assert decoder.slot_bytes == 2 * 2 * WIDTH * (32 + IMAGE_TOKENS) * 2
    assert [text[0] for text in found] == [text[0] for text in expected]


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_precision_without_its_package_is_refused_with_the_command_to_install_it(
    folder: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartupRefused, match=rf"precision is {precision}, which needs bitsandbytes; pip install"):
        load_weights(GPT2LMHeadModel, folder, precision, CPU)
