"""Family `qwen2_5_vl`: M-RoPE, and a vision tower most of whose layers attend inside windows.

Example: Qwen/Qwen2.5-VL-3B-Instruct. Only for still images.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from captioner.families.qwen_vl import PatchEmbedding, QwenVL, blocks, patch_positions, self_attention


class Encoder(torch.nn.Module):
    """uint8 pixels to features: the vision tower and the projection of its output.

    From the first layer to the last, the patches stand in whole windows. Those beyond the image's right and bottom
    edges are copies of the edge, and no patch attends to them.
    """

    def __init__(self, tower: Any, processor: dict[str, Any]) -> None:
        super().__init__()
        config = tower.config
        self.heads, self.merge = config.num_heads, config.spatial_merge_size
        self.side = config.window_size // config.spatial_merge_size // config.patch_size  # of a window, in cells
        self.embed = PatchEmbedding(tower, processor)
        self.rotary = tower.rotary_pos_emb
        self.blocks = tower.blocks
        self.merger = tower.merger
        self.full_layers = set(tower.fullatt_block_indexes)

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, image tokens, text width) float32."""
        cells_BRCD = blocks(self.embed(pixels_BHWC), self.merge).flatten(3)
        images, rows, columns, _ = cells_BRCD.shape
        # Windows. Rounded up with positive numbers: in ONNX, the division of a negative one rounds towards zero.
        down, across = (rows + self.side - 1) // self.side, (columns + self.side - 1) // self.side
        padded_rows, padded_columns = down * self.side, across * self.side
        row, column = (torch.arange(cells, device=cells_BRCD.device) for cells in (padded_rows, padded_columns))
        padded_BRCD = cells_BRCD[:, row.clamp(max=rows - 1)][:, :, column.clamp(max=columns - 1)]
        size = images, down * across, (self.side * self.merge) ** 2
        hidden_BWPD = blocks(padded_BRCD, self.side).reshape(*size, self.embed.projection.out_channels)
        positions = patch_positions(padded_rows * self.merge, padded_columns * self.merge, row.device)
        positions_WP2 = blocks(blocks(positions, self.merge).flatten(3), self.side).reshape(*size[1:], 2)
        rotary = self.rotary(hidden_BWPD, positions_WP2.flatten(0, 1))
        visible_WP = (positions_WP2[..., 0] < rows * self.merge) & (positions_WP2[..., 1] < columns * self.merge)
        for number, block in enumerate(self.blocks):
            # In a full layer, the patches of all windows are in one.
            windows, patches = (1, size[1] * size[2]) if number in self.full_layers else size[1:]
            attended = self_attention(
                block.attn,
                self.heads,
                block.norm1(hidden_BWPD).reshape(images, windows, patches, hidden_BWPD.shape[-1]),
                (
                    rotary[0].reshape(windows, patches, rotary[0].shape[-1]),
                    rotary[1].reshape(windows, patches, rotary[1].shape[-1]),
                ),
                visible_WP.reshape(windows, patches),
            )
            hidden_BWPD = hidden_BWPD + attended.reshape(hidden_BWPD.shape)
            hidden_BWPD = hidden_BWPD + block.mlp(block.norm2(hidden_BWPD))
        tokens_ND = self.merger(hidden_BWPD)
        width = tokens_ND.shape[-1]
        tokens = tokens_ND.reshape(images, down, across, self.side, self.side, width).transpose(2, 3)
        tokens_BRCD = tokens.reshape(images, padded_rows, padded_columns, width)
        features: torch.Tensor = tokens_BRCD[:, :rows, :columns].flatten(1, 2)
        return features


class Qwen2_5VL(QwenVL):  # noqa: N801 - the model's own name
    """See the module."""

    model_type = "qwen2_5_vl"
    text_type = "qwen2"
    encoder = Encoder
    rotary = Qwen2_5_VLRotaryEmbedding
