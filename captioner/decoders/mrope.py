"""Prefix decoders with multimodal rotary positions (M-RoPE) and DeepStack.

M-RoPE: the rotary position of an image token is its row and column in the image's grid, and the text after the image
continues after the largest of them. So the rotary positions of a caption are its cache positions plus an offset.
DeepStack: an image token has a further vector for each of the first layers, which is added to that layer's output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from captioner.decoders.prefix import PrefixDecoder
from captioner.decoders.rows import RowCopy


class MRopeDecoder(PrefixDecoder):
    """A transformers causal language model that reads features (rows, columns, width) of one image.

    `rotary` makes, from the model's config, the embedding of positions (3, B, queries): time, row and column. The width
    is the embedding of the language model and as many DeepStack vectors as fit into `feature_width`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context_tokens: int,
        image_token_id: int,
        *,
        feature_width: int,
        rotary: Callable[[Any], torch.nn.Module],
    ) -> None:
        super().__init__(model, context_tokens, image_token_id)
        language_model: Any = model.base_model
        language_model.rotary_emb = rotary(model.config).to(self.device)
        self.embedding_width = int(model.config.hidden_size)
        for level in range(feature_width // self.embedding_width - 1):
            language_model.layers[level].register_forward_hook(partial(self._add_level, level))
        # Of the prompt that is being prefilled:
        self.prompt_3N: torch.Tensor | None = None  # rotary positions
        self.levels_LND: torch.Tensor | None = None  # DeepStack vectors, zero beside the image

    def allocate(self, slots: int) -> None:
        """See Decoder.allocate."""
        super().allocate(slots)
        self.offsets = torch.zeros(slots, dtype=torch.long, device=self.device)  # rotary minus cache positions

    @torch.inference_mode()
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """See PrefixDecoder.prefill."""
        first, count = self.image_positions(features, prompt_ids)[0], len(prompt_ids) - 1
        rows, columns, _ = features.shape
        end, after = first + rows * columns, first + max(rows, columns)
        self.offsets[row].fill_(after - end)
        positions_N = torch.arange(count, device=self.device)
        prompt_3N = positions_N.repeat(3, 1)
        prompt_3N[0, first:end] = first
        prompt_3N[1, first:end] = first + (positions_N[: end - first] // columns)
        prompt_3N[2, first:end] = first + (positions_N[: end - first] % columns)
        prompt_3N[:, end:] += after - end
        # On the device as a whole: the parts of pinned memory would be copied through other memory.
        embeddings_TD, *levels = self.upload_features(features).split(self.embedding_width, -1)
        levels_LND = embeddings_TD.new_zeros(len(levels), count, self.embedding_width)
        if levels:
            levels_LND[:, first:end] = torch.stack(levels)
        self.prompt_3N, self.levels_LND = prompt_3N, levels_LND
        try:
            super().prefill(row, embeddings_TD, prompt_ids)
        finally:
            self.prompt_3N = self.levels_LND = None

    def copy(self, rows: RowCopy, length: int) -> None:
        """See Decoder.copy."""
        super().copy(rows, length)
        rows(self.offsets)

    def rotary_positions(self, rows: slice, positions_BQ: torch.Tensor) -> torch.Tensor:
        """See PrefixDecoder.rotary_positions."""
        if self.prompt_3N is not None:
            return self.prompt_3N[:, positions_BQ]
        return positions_BQ + self.offsets[rows, None]

    def _add_level(self, level: int, layer: torch.nn.Module, inputs: object, output_BQD: torch.Tensor) -> torch.Tensor:
        if self.levels_LND is None:
            return output_BQD
        return output_BQD + self.levels_LND[level, self.window.positions]
