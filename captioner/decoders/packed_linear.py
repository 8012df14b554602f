"""Linear layers of a decoder on the CPU, their weights laid out for oneDNN once instead of in every product.

A step multiplies a few rows with large matrices, and the ordinary layers lay the matrix out anew each time; what that
costs stands in docs/performance.md. The two operators are those that torch's own compiler puts in place of linear
layers when it freezes a model.
"""

from __future__ import annotations

import torch
from transformers.pytorch_utils import Conv1D

ROWS = 16  # of the inputs, which the layout is chosen for; it serves any number


class PackedLinear(torch.nn.Module):
    """y = x Wᵀ + b for x (…, in), with W (out, in) packed; ValueError for x of another width."""

    packed: torch.Tensor

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self.width = weight_OI.shape[1]
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), ROWS))
        self.register_buffer("bias", bias_O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if x.shape[-1] != self.width:  # oneDNN's own words name neither number
            raise ValueError(f"the input has shape {tuple(x.shape)}; its last dimension must be {self.width}")
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


@torch.inference_mode()
def pack(model: torch.nn.Module) -> None:
    """Replaces the linear layers inside `model`, on the CPU, where this machine's oneDNN serves their type."""
    if not torch.backends.mkldnn.is_available():
        return
    types = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        types.add(torch.bfloat16)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            # Exactly these classes: quantised layers are their subclasses.
            if type(layer) is torch.nn.Linear and layer.weight.dtype in types:
                setattr(parent, name, PackedLinear(layer.weight, layer.bias))
            elif type(layer) is Conv1D and layer.weight.dtype in types:
                setattr(parent, name, PackedLinear(layer.weight.T, layer.bias))
