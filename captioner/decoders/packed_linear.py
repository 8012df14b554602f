"""Linear layers of a decoder on the CPU, with weights packed for oneDNN once instead of in every product.

A step multiplies a few rows with large matrices, and a plain linear layer repacks its matrix each time;
docs/performance.md has the cost. The two operators are the ones that torch's compiler uses for the linear layers of a
frozen model.
"""

from __future__ import annotations

import torch
from transformers.pytorch_utils import Conv1D

LAYOUT_ROWS = 16  # input rows for which the layout is optimised; it works for any number


class PackedLinear(torch.nn.Module):
    """y = x Wᵀ + b for x (…, in), with W (out, in) packed. Raises ValueError for another input width."""

    packed: torch.Tensor

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self.width = weight_OI.shape[1]
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), LAYOUT_ROWS)
        self.register_buffer("packed", packed)
        self.register_buffer("bias", bias_O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if x.shape[-1] != self.width:  # oneDNN's own error names neither number
            raise ValueError(f"the input has shape {tuple(x.shape)}; its last dimension must be {self.width}")
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


@torch.inference_mode()
def pack(model: torch.nn.Module) -> None:
    """Replace the linear layers inside `model`, on the CPU, if this machine's oneDNN supports their dtype."""
    if not torch.backends.mkldnn.is_available():
        return
    types = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        types.add(torch.bfloat16)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            # Exact classes only: quantised layers are subclasses.
            if type(layer) is torch.nn.Linear and layer.weight.dtype in types:
                setattr(parent, name, PackedLinear(layer.weight, layer.bias))
            elif type(layer) is Conv1D and layer.weight.dtype in types:
                setattr(parent, name, PackedLinear(layer.weight.T, layer.bias))
