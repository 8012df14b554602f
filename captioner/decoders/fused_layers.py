"""Llama's layers with fewer kernels: one product for query, key and value, one for gate and up, fused normalization.

A step of few rows reads each matrix once, and its many small kernels take as long as a part of the matrices. Quantized
layers keep their own products. It knows transformers' modules and no caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2

NORMS = (llama.LlamaRMSNorm, qwen2.Qwen2RMSNorm)
ATTENTIONS = (llama.LlamaAttention, qwen2.Qwen2Attention)
MLPS = (llama.LlamaMLP, qwen2.Qwen2MLP)


class FusedNorm(torch.nn.Module):
    """RMS normalization of the last dimension, as one kernel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, float(norm.variance_epsilon)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


class FusedMLP(torch.nn.Module):
    """down(activation(gate(x)) · up(x)), with the rows of gate and up in one matrix."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up_proj = _merged(mlp.gate_proj, mlp.up_proj)
        self.down_proj, self.activation = mlp.down_proj, mlp.act_fn

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the class."""
        gate, up = self.gate_up_proj(hidden).chunk(2, -1)
        down: torch.Tensor = self.down_proj(self.activation(gate) * up)
        return down


class FusedAttention(torch.nn.Module):
    """Self-attention with one product for query, key and value; query and key are rotated together."""

    is_causal = True  # the attributes that transformers' attention functions read

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.config, self.layer_idx = attention.config, attention.layer_idx
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.num_key_value_groups = attention.num_key_value_groups
        self.qkv_proj = _merged(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj
        self.value_heads = attention.v_proj.out_features // self.head_dim

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """(B, Q, width) → (B, Q, width), as the layer that it replaces."""
        rows, queries = hidden_states.shape[:2]
        states_BHQD = self.qkv_proj(hidden_states).view(rows, queries, -1, self.head_dim).transpose(1, 2)
        rotated_heads = states_BHQD.shape[1] - self.value_heads
        plain_BHQD, value_BHQD = states_BHQD.split([rotated_heads, self.value_heads], 1)
        cos_B1QD, sin_B1QD = (part[:, None] for part in position_embeddings)
        first_BHQD, second_BHQD = plain_BHQD.chunk(2, -1)
        turned_BHQD = torch.cat([-second_BHQD, first_BHQD], -1)
        rotated_BHQD = plain_BHQD * cos_B1QD + turned_BHQD * sin_B1QD
        query_BHQD, key_BHQD = rotated_BHQD.split([rotated_heads - self.value_heads, self.value_heads], 1)
        if past_key_values is not None:
            key_BHQD, value_BHQD = past_key_values.update(key_BHQD, value_BHQD, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attended_BQHD, _ = attend(
            self, query_BHQD, key_BHQD, value_BHQD, attention_mask, dropout=0.0, scaling=self.scaling, **options
        )
        return self.o_proj(attended_BQHD.reshape(rows, queries, -1)), None


@torch.inference_mode()
def fuse(model: torch.nn.Module) -> None:
    """Replace the layers inside `model` that are exactly Llama's or Qwen2's; the others stay."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) in NORMS:
                setattr(parent, name, FusedNorm(layer))
            elif type(layer) in MLPS and _plain(layer.gate_proj, layer.up_proj):
                setattr(parent, name, FusedMLP(layer))
            elif type(layer) in ATTENTIONS and _plain(layer.q_proj, layer.k_proj, layer.v_proj):
                setattr(parent, name, FusedAttention(layer))


def _plain(*layers: object) -> bool:
    """Return whether all layers are plain linear ones: quantized layers are subclasses."""
    return all(type(layer) is torch.nn.Linear for layer in layers)


def _merged(*layers: torch.nn.Linear) -> torch.nn.Linear:
    """Return one layer whose outputs are those of `layers`, one after the other."""
    weight_OI = torch.cat([layer.weight for layer in layers])
    merged = torch.nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    merged.weight = torch.nn.Parameter(weight_OI, requires_grad=False)
    if layers[0].bias is not None:
        merged.bias = torch.nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return merged
