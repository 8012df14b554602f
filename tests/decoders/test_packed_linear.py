"""Packed linear layers give the same numbers as plain ones; only plain linear layers are packed."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from captioner.decoders.packed_linear import PackedLinear, pack


@pytest.mark.parametrize("rows", [1, 3, 16, 65])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_a_packed_layer_gives_the_numbers_of_the_plain_layer(
    rows: int, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(rows)
    layer = torch.nn.Linear(48, 40, bias=bias, dtype=dtype)
    model = torch.nn.Sequential(layer)
    x = torch.randn(2, rows, 48, dtype=dtype)
    with torch.inference_mode():
        expected = layer(x)
        pack(model)
        found = model(x)
    supported = dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # by this machine's oneDNN
    assert isinstance(model[0], PackedLinear) == supported
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_the_conv1d_layers_of_gpt2_are_packed() -> None:
    layer = Conv1D(40, 48)
    model = torch.nn.ModuleDict({"c_attn": layer})
    x = torch.randn(5, 48)
    with torch.inference_mode():
        expected = layer(x)
        pack(model)
        assert torch.allclose(model["c_attn"](x), expected, atol=1e-5)


def test_an_input_of_another_width_is_refused_with_both_widths() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(48, 40))
    pack(model)
    with pytest.raises(ValueError, match=r"shape \(2, 47\); its last dimension must be 48"):
        model(torch.zeros(2, 47))


def test_subclasses_and_unsupported_dtypes_are_not_packed() -> None:
    class Quantised(torch.nn.Linear):
        """A subclass, like the layers of bitsandbytes."""

    model = torch.nn.Sequential(Quantised(8, 8), torch.nn.Linear(8, 8, dtype=torch.float64), torch.nn.LayerNorm(8))
    before = list(model)
    pack(model)
    assert list(model) == before


def test_packed_weights_count_as_memory() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    before = sum(parameter.nbytes for parameter in model.parameters())
    pack(model)
    assert sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) == before
