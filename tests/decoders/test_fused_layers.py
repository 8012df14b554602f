"""Fused layers compute what Llama's and Qwen2's own layers compute, with at most twenty kernels a layer."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from captioner.decoders.fused_layers import FusedAttention, FusedMLP, FusedNorm, fuse
from captioner.decoders.prefix import PrefixDecoder
from tests.support.operations import Operations

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA = LlamaConfig(num_hidden_layers=2, **SIZES)
CONFIGS = {
    "llama": (LlamaForCausalLM, LLAMA),
    "llama with biases": (LlamaForCausalLM, LlamaConfig(num_hidden_layers=2, attention_bias=True, **SIZES)),
    "llama without groups": (LlamaForCausalLM, LlamaConfig(num_hidden_layers=2, **SIZES | {"num_key_value_heads": 4})),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(num_hidden_layers=2, **SIZES)),
}
KERNELS_A_LAYER = 20
# They return a view of their argument, so they launch nothing.
VIEWS = frozenset(
    ("view", "transpose", "slice", "select", "split", "split_with_sizes", "chunk", "unsqueeze", "expand", "reshape")
)


def built(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config).eval()
    with torch.no_grad():  # norms and biases start as ones and zeros, which would hide a mistake
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_own_layers(name: str) -> None:
    model = built(*CONFIGS[name])
    fused = copy.deepcopy(model)
    fuse(fused)
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = model(ids).logits, fused(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(expected, expected.flip(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_is_replaced(name: str) -> None:
    model = built(*CONFIGS[name])
    fuse(model)
    kinds = Counter(type(module) for module in model.modules())
    assert (kinds[FusedAttention], kinds[FusedMLP], kinds[FusedNorm]) == (2, 2, 5)
    assert kinds[torch.nn.Linear] == 2 * 4 + 1


def test_other_layers_and_quantized_ones_stay() -> None:
    class Quantized(torch.nn.Linear):
        pass

    mistral = MistralForCausalLM(MistralConfig(num_hidden_layers=1, **SIZES))
    before = Counter(type(module) for module in mistral.modules())
    fuse(mistral)
    assert Counter(type(module) for module in mistral.modules()) == before

    llama = built(LlamaForCausalLM, LLAMA)
    for module in list(llama.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, Quantized(child.in_features, child.out_features, bias=False))
    fuse(llama)
    kinds = {type(module) for module in llama.modules()}
    assert FusedNorm in kinds and not {FusedAttention, FusedMLP} & kinds


def test_a_merged_model_holds_as_many_bytes() -> None:
    model = built(LlamaForCausalLM, LLAMA)
    before = sum(parameter.nbytes for parameter in model.parameters())
    fuse(model)
    assert sum(parameter.nbytes for parameter in model.parameters()) == before


def test_a_step_launches_at_most_twenty_kernels_a_layer() -> None:
    counts = {}
    for layers in (2, 5):
        model = built(LlamaForCausalLM, LlamaConfig(num_hidden_layers=layers, **SIZES))
        fuse(model)
        decoder = PrefixDecoder(model, context_tokens=32, image_token_id=7)
        decoder.allocate(4)
        with Operations() as operations:
            decoder.decode(torch.tensor([1, 2, 3]), torch.tensor([4, 6, 1]), span=8)
        counts[layers] = operations.counts
    added = counts[5] - counts[2]
    kernels = {name: number for name, number in added.items() if name.split(".")[1] not in VIEWS}
    assert 10 * 3 < sum(kernels.values()) <= KERNELS_A_LAYER * 3, kernels
    assert kernels["aten.rms_norm"] == 2 * 3
