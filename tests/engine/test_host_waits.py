"""What a step must not do if it is to run on CUDA without waiting: read from the device, or index with host data.

On a CPU these operations cost nothing, so they are counted, not timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from captioner.decoders.base import Decoder
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.encoder_decoder import EncoderDecoder
from captioner.decoders.load_weights import load_weights
from captioner.decoders.mrope import MRopeDecoder
from captioner.decoders.prefix import PrefixDecoder
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence
from tests.support import tiny
from tests.support.operations import Operations

# Each makes a shape or a Python number of what is on the device.
READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.item", "aten.unique")
HOST_DATA = "aten.lift_fresh"  # torch.tensor() of Python numbers
IMAGE, SLOTS = 7, 6


def cross() -> tuple[Decoder, torch.Tensor, list[int]]:
    model = load_weights(GPT2LMHeadModel, tiny.published(), "fp32", torch.device("cpu"))
    return CrossAttentionDecoder(model, tiny.CONTEXT, tiny.FEATURE_TOKENS), tiny.features(0), [0, 1, 2]


def prefix() -> tuple[Decoder, torch.Tensor, list[int]]:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "vocab_size": 50,
        "max_position_embeddings": 64,
    }
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)).eval()
    return PrefixDecoder(model, 64, IMAGE), torch.zeros(2, 16), [0, IMAGE, IMAGE, 1]


def encoder_decoder() -> tuple[Decoder, torch.Tensor, list[int]]:
    parts: dict[str, Any] = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = BartConfig(d_model=16, vocab_size=50, max_position_embeddings=64, **parts)
    model = BartForConditionalGeneration(config).eval()
    return EncoderDecoder(model, 64, 3, 8, 2), torch.zeros(3, 16), [0, 7, 8, 2, 2, 0]


def mrope() -> tuple[Decoder, torch.Tensor, list[int]]:
    model = Qwen3ForCausalLM(
        Qwen3Config(
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            hidden_size=16,
            head_dim=8,
            intermediate_size=24,
            vocab_size=50,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    ).eval()
    decoder = MRopeDecoder(model, 64, IMAGE, feature_width=32, rotary=Qwen3VLTextRotaryEmbedding)
    return decoder, torch.zeros(1, 2, 32), [0, IMAGE, IMAGE, 1]


@pytest.fixture(
    params=[cross, prefix, encoder_decoder, mrope], ids=["cross-attention", "prefix", "encoder-decoder", "mrope"]
)
def running(request: pytest.FixtureRequest) -> tuple[Runner, list[Sequence]]:
    """A runner whose rows all hold a caption."""
    make: Callable[[], tuple[Decoder, torch.Tensor, list[int]]] = request.param
    decoder, features, prompt_ids = make()
    runner = Runner(decoder, SLOTS)
    sequences = [Sequence(prompt_ids, Sampling(), 9, rows=[row], features=features) for row in range(SLOTS)]
    for sequence in sequences:
        runner.join(sequence)
    runner.launch(sequences)
    return runner, sequences


def assert_no_wait(counts: Counter[str], host_data: int = 0) -> None:
    assert {name: counts[name] for name in READS if counts[name]} == {}
    assert counts[HOST_DATA] <= host_data


def test_a_greedy_step_reads_nothing_and_takes_no_data_of_the_host(running: tuple[Runner, list[Sequence]]) -> None:
    runner, sequences = running
    with Operations() as operations:
        runner.launch(sequences)
    assert operations.counts and operations.counts.total() > 20
    assert_no_wait(operations.counts)


def test_rows_that_move_into_free_ones_are_copied_by_number(running: tuple[Runner, list[Sequence]]) -> None:
    runner, _ = running
    with Operations() as operations:
        runner.move([4, 5], [0, 2])
    assert_no_wait(operations.counts)
    assert not operations.counts["aten.index_put_"] and not operations.counts["aten.index.Tensor"]


def test_beams_that_change_places_upload_two_indices_for_all_layers(running: tuple[Runner, list[Sequence]]) -> None:
    runner, _ = running
    with Operations() as operations:
        runner.reorder_beams([0, 1, 2], [1, 0, 1], [3, 4, 5])
    assert_no_wait(operations.counts, host_data=4)


def test_a_prefill_reads_nothing(running: tuple[Runner, list[Sequence]]) -> None:
    runner, sequences = running
    runner.move([5], [0])
    sequences[5].rows = [5]
    with Operations() as operations:
        runner.join(sequences[5])
    assert_no_wait(operations.counts, host_data=4)
