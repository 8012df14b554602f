"""Decoders with a text encoder of their own (BART): it reads the image and the prompt once for each caption.

The decoder sees the encoder's output through cross-attention. Its length differs from prompt to prompt, so each row has
its own, and a mask hides the keys after it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from captioner.decoders.cross_attention import CrossAttentionDecoder, Projection, separate
from captioner.decoders.kv_cache import Window, causal_mask
from captioner.decoders.rows import RowCopy, upload


class RowPositions(torch.nn.Module):
    """Position embeddings of a window's own positions. BART counts from the length of its cache, one for all rows."""

    def __init__(self, table: torch.nn.Module, window: Window) -> None:
        super().__init__()
        self.table = table
        self.window = window

    def forward(self, input_ids: torch.Tensor, *counted: object, **also_counted: object) -> torch.Tensor:
        """Return embeddings (rows, queries, width)."""
        embeddings: torch.Tensor = self.table(input_ids, position_ids=self.window.positions)[0]
        return embeddings


class EncoderDecoder(CrossAttentionDecoder):
    """A BartForConditionalGeneration. Its encoder reads `image_tokens` features and up to `prompt_tokens` prompt ids.

    The last `start_tokens` of all prompt ids are the decoder's own; the encoder reads those before them.
    """

    def __init__(
        self, model: PreTrainedModel, context_tokens: int, image_tokens: int, prompt_tokens: int, start_tokens: int
    ) -> None:
        super().__init__(model, context_tokens, image_tokens + prompt_tokens)
        self.image_tokens, self.start_tokens = image_tokens, start_tokens
        parts: Any = model.get_submodule("model")
        self.encoder = parts.encoder
        parts.decoder.embed_positions = RowPositions(parts.decoder.embed_positions, self.window)

    def cross_projections(self, model: PreTrainedModel) -> list[Projection]:
        """Return those of each decoder layer, see image_projections."""
        layers: Any = model.get_submodule("model.decoder.layers")
        return [separate(layer.encoder_attn.k_proj, layer.encoder_attn.v_proj) for layer in layers]

    def allocate(self, slots: int) -> None:
        """See Decoder.allocate."""
        super().allocate(slots)
        self.prompt_lengths = torch.zeros(slots, dtype=torch.long, device=self.device)  # ids that the encoder read

    @torch.inference_mode()
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """See Decoder.prefill. Raises ValueError if the encoder would read more tokens than a row holds."""
        ids, start_ids = prompt_ids[: -self.start_tokens], prompt_ids[-self.start_tokens :]
        if len(features) != self.image_tokens or len(features) + len(ids) > self.shape.image_tokens:
            raise ValueError(
                f"the encoder would read {len(features)} features and {len(ids)} prompt ids; a row holds "
                f"{self.image_tokens} and {self.shape.image_tokens - self.image_tokens}"
            )
        features_1TD = features.to(self.device, self.dtype, non_blocking=True)[None]
        embeddings_1ND = self.model.get_input_embeddings()(upload(ids, self.device)[None]).to(self.dtype)
        read_1KD = self.encoder(inputs_embeds=torch.cat([features_1TD, embeddings_1ND], 1)).last_hidden_state
        self.prompt_lengths[row].fill_(len(ids))
        super().prefill(row, read_1KD[0], start_ids)

    @torch.inference_mode()
    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        """See Decoder.decode."""
        return super().decode(ids_B, positions_B - self.prompt_lengths[: ids_B.shape[0]], span)

    def _forward(self, rows: slice, ids_BQ: torch.Tensor, positions_BQ: torch.Tensor, span: int) -> torch.Tensor:
        """Return the last query's logits, (B, vocabulary). Positions are the decoder's own."""
        self.window.set(rows, positions_BQ, span)
        self.both_caches.is_updated = dict.fromkeys(range(self.shape.layers), True)
        last_keys_B1 = (self.prompt_lengths[rows] + (self.image_tokens - 1))[:, None]
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.no_features[rows]),
            attention_mask=causal_mask(last_keys_B1, self.shape.image_tokens, self.dtype),
            decoder_input_ids=ids_BQ,
            decoder_attention_mask=causal_mask(positions_BQ, span, self.dtype),
            past_key_values=self.both_caches,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def copy(self, rows: RowCopy, length: int) -> None:
        """See Decoder.copy."""
        super().copy(rows, length)
        rows(self.prompt_lengths)
