"""Decoding for captioners whose text looks at the image through cross-attention (GPT-2 and its like)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, EncoderDecoderCache

from captioner.engine.kv_cache import CrossLayer, SlotLayer, Window
from captioner.families.base import Decoder
from captioner.manifest import Manifest


class CrossAttentionDecoder(Decoder):
    """A transformers causal model with `add_cross_attention`, read from `folder/decoder`."""

    def __init__(self, folder: Path, manifest: Manifest, slots: int, device: torch.device) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder / "decoder", dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        self.model.eval().to(device)
        config = self.model.config
        heads, head_size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        like = torch.empty(0, device=device)
        self.device = device
        self.window = Window()
        layers = range(config.num_hidden_layers)
        text = (self.window, slots, heads, manifest.context_tokens, head_size, like)
        image = (self.window, slots, heads, manifest.feature_tokens, head_size, like)
        self.text_layers = [SlotLayer(*text) for _ in layers]
        self.image_layers = [CrossLayer(*image) for _ in layers]
        self.cache = EncoderDecoderCache(Cache(layers=list(self.text_layers)), Cache(layers=list(self.image_layers)))
        # GPT-2 asks only whether there are any, once their keys are cached.
        self.no_features = torch.empty(slots, manifest.feature_tokens, 0, device=device)

    @torch.inference_mode()
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> torch.Tensor:
        """See Decoder.prefill."""
        for layer in self.text_layers:
            layer.clear(row)
        queries = len(prompt_ids)
        positions = torch.arange(queries, device=self.device)[None]  # (1, queries)
        mask = positions[0, None, :] <= positions[0, :, None]  # (queries, keys)
        logits = self._forward(
            slice(row, row + 1),
            torch.tensor([prompt_ids], device=self.device),
            positions,
            mask[None, None],
            features.to(self.device, torch.float32)[None],
        )
        return logits[0]

    @torch.inference_mode()
    def decode(self, token_ids: list[int], positions: list[int]) -> torch.Tensor:
        """See Decoder.decode."""
        rows = len(token_ids)
        at = torch.tensor(positions, device=self.device)[:, None]  # (rows, 1)
        keys = torch.arange(max(positions) + 1, device=self.device)
        mask = (keys[None] <= at)[:, None, None]  # (rows, 1, 1, keys)
        ids = torch.tensor(token_ids, device=self.device)[:, None]
        return self._forward(slice(0, rows), ids, at, mask, None)

    def _forward(
        self,
        rows: slice,
        ids_BQ: torch.Tensor,
        positions_BQ: torch.Tensor,
        mask_B1QK: torch.Tensor,
        features_BTD: torch.Tensor | None,
    ) -> torch.Tensor:
        """The last query's logits, (B, vocabulary). Features are given once, at prefill."""
        self.window.rows, self.window.positions, self.window.span = rows, positions_BQ, mask_B1QK.shape[-1]
        known = features_BTD is None
        self.cache.is_updated = dict.fromkeys(range(len(self.text_layers)), known)
        output = self.model(
            input_ids=ids_BQ,
            position_ids=positions_BQ,
            attention_mask=mask_B1QK,
            encoder_hidden_states=self.no_features[rows] if features_BTD is None else features_BTD,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def move(self, source: int, target: int, length: int) -> None:
        """See Decoder.move."""
        for text, image in zip(self.text_layers, self.image_layers, strict=True):
            text.move(source, target, length)
            image.move(source, target)

    @property
    def cache_bytes(self) -> int:
        """See Decoder.cache_bytes."""
        return sum(layer.nbytes for layer in self.text_layers) + sum(layer.nbytes for layer in self.image_layers)
