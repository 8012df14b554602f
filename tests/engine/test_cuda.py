"""CUDA graphs of the step, async scheduling and precisions on a real CUDA device."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import GPT2LMHeadModel

from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.load_weights import Precision, load_weights
from captioner.engine.cuda_graphs import MAX_GAP, buckets
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence
from tests.support import tiny


@pytest.mark.parametrize(
    ("smallest", "largest", "expected"),
    [(1, 1, [1]), (1, 16, [1, 2, 4, 8, 16]), (1, 6, [1, 2, 4, 6]), (256, 600, [256, 512, 600]), (48, 48, [48])],
)
def test_buckets_double_and_end_with_the_largest(smallest: int, largest: int, expected: list[int]) -> None:
    assert buckets(smallest, largest) == expected


def test_spans_grow_by_a_fixed_gap_so_that_a_row_reads_little_that_is_not_used() -> None:
    assert buckets(256, 2048, MAX_GAP) == [256, 512, 768, 1024, 1280, 1536, 1792, 2048]
    assert buckets(48, 48, MAX_GAP) == [48]


def captions(device: str, samplings: list[Sampling], precision: Precision = "fp32") -> list[list[int]]:
    """Return the captions of one engine of 6 slots on `device`; requests arrive at different steps."""
    model = load_weights(GPT2LMHeadModel, tiny.published(), precision, torch.device(device))
    runner = Runner(CrossAttentionDecoder(model, tiny.CONTEXT, tiny.FEATURE_TOKENS), 6)
    runner.warm_up(tiny.features(0), [0])
    engine, chance = Engine(runner, (1, tiny.STOP), max_waiting=50), random.Random(0)
    sequences = [
        Sequence([0, 2 + number], sampling, chance.randrange(2, 30), features=tiny.features(number % 8))
        for number, sampling in enumerate(samplings)
    ]
    for sequence in sequences:
        engine.admit(sequence)
        engine.submit(sequence)
        for _ in range(chance.randrange(3)):
            engine.step()
    while engine.load().running + engine.load().waiting:
        engine.step()
    assert [sequence.error for sequence in sequences] == [None] * len(sequences)
    return [sequence.token_ids for sequence in sequences]


@pytest.mark.gpu
def test_cuda_graphs_and_async_scheduling_give_the_captions_of_the_cpu() -> None:
    samplings = [Sampling(repetition_penalty=1.0 + number % 3 / 4) for number in range(24)]
    assert captions("cuda", samplings) == captions("cpu", samplings)


@pytest.mark.gpu
def test_a_seed_reproduces_its_captions_on_the_device() -> None:
    samplings = [Sampling(temperature=1.0, top_p=0.9, seed=number) for number in range(24)]
    assert captions("cuda", samplings) == captions("cuda", samplings)


@pytest.mark.gpu
def test_bf16_gives_captions_on_the_device() -> None:
    assert all(captions("cuda", [Sampling()] * 12, "bf16"))
