"""Decoders that read the image through cross-attention (GPT-2, BERT and similar)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, EncoderDecoderCache

from captioner.decoders.base import Decoder
from captioner.decoders.kv_cache import CacheShape, CrossLayer, causal_mask
from captioner.decoders.rows import RowCopy, upload
from captioner.errors import ModelUnsupported

Projection = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class CrossAttentionDecoder(Decoder):
    """A transformers causal model with cross-attention to `image_tokens` features."""

    def __init__(self, model: PreTrainedModel, context_tokens: int, image_tokens: int) -> None:
        config = model.config
        projections = self.cross_projections(model)  # one a layer
        heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
        size = config.hidden_size // heads
        super().__init__(model, CacheShape(len(projections), heads, size, context_tokens, image_tokens))
        self.projections = projections

    def cross_projections(self, model: PreTrainedModel) -> list[Projection]:
        """See image_projections."""
        return image_projections(model)

    def allocate(self, slots: int) -> None:
        """See Decoder.allocate."""
        super().allocate(slots)
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        self.image_layers = [CrossLayer(self.window, slots, self.shape, like) for _ in self.text_layers]
        self.both_caches = EncoderDecoderCache(self.cache, Cache(layers=list(self.image_layers)))
        # With cached keys, the models only check that features are given; they do not read them.
        self.no_features = torch.empty(slots, self.shape.image_tokens, 0, device=self.device)

    @torch.inference_mode()
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """See Decoder.prefill."""
        features_1TD = features.to(self.device, self.dtype, non_blocking=True)[None]
        for text, image, projection in zip(self.text_layers, self.image_layers, self.projections, strict=True):
            text.clear(row)
            keys_1TD, values_1TD = projection(features_1TD)
            image.write(row, keys_1TD[0], values_1TD[0])
        if len(prompt_ids) > 1:
            ids_1Q = upload(prompt_ids[:-1], self.device)[None]
            positions_1Q = torch.arange(ids_1Q.shape[1], device=self.device)[None]
            self._forward(slice(row, row + 1), ids_1Q, positions_1Q, ids_1Q.shape[1])

    @torch.inference_mode()
    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        """See Decoder.decode."""
        return self._forward(slice(0, ids_B.shape[0]), ids_B[:, None], positions_B[:, None], span)

    def _forward(self, rows: slice, ids_BQ: torch.Tensor, positions_BQ: torch.Tensor, span: int) -> torch.Tensor:
        """Return the last query's logits, (B, vocabulary)."""
        self.window.set(rows, positions_BQ, span)
        self.both_caches.is_updated = dict.fromkeys(range(self.shape.layers), True)
        output = self.model(
            input_ids=ids_BQ,
            position_ids=positions_BQ,
            attention_mask=causal_mask(positions_BQ, span, self.dtype),
            encoder_hidden_states=self.no_features[rows],
            past_key_values=self.both_caches,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def copy(self, rows: RowCopy, length: int) -> None:
        """See Decoder.copy."""
        super().copy(rows, length)
        for layer in self.image_layers:
            layer.copy(rows)


def image_projections(model: PreTrainedModel) -> list[Projection]:
    """Return, for each layer, the function from features (1, T, width) to the keys and values of its cross-attention.

    Raises ModelUnsupported for a decoder with neither the layout of GPT-2 nor that of BERT.
    """
    blocks: list[Any] = [module.crossattention for module in model.modules() if hasattr(module, "crossattention")]
    if blocks and all(hasattr(block, "c_attn") for block in blocks):
        return [_gpt2(block.c_attn) for block in blocks]
    if blocks and all(hasattr(getattr(block, "self", None), "key") for block in blocks):
        return [separate(block.self.key, block.self.value) for block in blocks]
    raise ModelUnsupported(
        f"{type(model).__name__} has no cross-attention with the layout of GPT-2 or BERT; no other layout is supported"
    )


def _gpt2(both: Callable[[torch.Tensor], torch.Tensor]) -> Projection:
    def project(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = both(features).chunk(2, -1)
        return keys, values

    return project


def separate(key: Callable[[torch.Tensor], torch.Tensor], value: Callable[[torch.Tensor], torch.Tensor]) -> Projection:
    """Return the projection of two separate layers."""
    return lambda features: (key(features), value(features))
