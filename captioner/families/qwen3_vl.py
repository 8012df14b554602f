"""Family `qwen3_vl`: M-RoPE and DeepStack.

Example: Qwen/Qwen3-VL-2B-Instruct. Only for still images.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from captioner.families.qwen_vl import PatchEmbedding, QwenVL, blocks, patch_positions, self_attention


class Encoder(torch.nn.Module):
    """uint8 pixels to features: the vision tower, the projections of its output and of inner layers (DeepStack)."""

    def __init__(self, tower: Any, processor: dict[str, Any]) -> None:
        super().__init__()
        config = tower.config
        self.heads, self.merge = config.num_heads, config.spatial_merge_size
        self.embed = PatchEmbedding(tower, processor)
        side = tower.num_grid_per_side
        self.positions_SSD = torch.nn.Parameter(tower.pos_embed.weight.detach().view(side, side, -1))
        self.rotary = tower.rotary_pos_emb
        self.blocks = tower.blocks
        self.merger = tower.merger
        self.level_mergers = tower.deepstack_merger_list
        self.level_layers = list(tower.deepstack_visual_indexes)

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, image tokens, text width × (1 + levels)) float32."""
        patches_BHWD = self.embed(pixels_BHWC)
        images, rows, columns, _ = patches_BHWD.shape
        # All patches of an image are in one window.
        hidden_B1ND = blocks(patches_BHWD + self.positions(rows, columns), self.merge).flatten(1, 3)[:, None]
        positions = patch_positions(rows, columns, hidden_B1ND.device)
        rotary = self.rotary(hidden_B1ND, blocks(positions, self.merge).flatten(0, 3))
        levels = []
        for number, block in enumerate(self.blocks):
            hidden_B1ND = hidden_B1ND + self_attention(block.attn, self.heads, block.norm1(hidden_B1ND), rotary)
            hidden_B1ND = hidden_B1ND + block.mlp(block.norm2(hidden_B1ND))
            if number in self.level_layers:
                levels.append(self.level_mergers[self.level_layers.index(number)](hidden_B1ND))
        features_ND = torch.cat([self.merger(hidden_B1ND), *levels], -1)
        return features_ND.reshape(images, rows * columns // self.merge**2, features_ND.shape[-1])

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """Return the position embeddings, (rows, columns, D): the table, interpolated so that its corners stay."""
        side = self.positions_SSD.shape[0]

        def weights(count: int) -> torch.Tensor:
            """Return the share of each of the table's lines in each of `count`, (count, side)."""
            lines = torch.arange(count, device=self.positions_SSD.device).float() * (side - 1) / (count - 1)
            distance = lines[:, None] - torch.arange(side, device=lines.device)
            return (1 - distance.abs()).clamp(min=0)

        return torch.einsum("hs,std,wt->hwd", weights(rows), self.positions_SSD, weights(columns))


class Qwen3VL(QwenVL):
    """See the module."""

    model_type = "qwen3_vl"
    text_type = "qwen3"
    encoder = Encoder
    rotary = Qwen3VLTextRotaryEmbedding
