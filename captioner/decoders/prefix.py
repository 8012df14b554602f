"""Decoders that read the image inside the prompt: its features replace the embeddings of image tokens.

Any transformers causal language model that takes embeddings, positions and a mask works, such as Llama. The family
knows the text around the image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.kv_cache import CacheShape, causal_mask
from captioner.decoders.load_weights import Precision, load_weights
from captioner.decoders.rows import upload
from captioner.errors import ArtefactBroken, ModelUnsupported

PREFILL_QUERIES = 512  # per pass on a CPU: attention scores of a whole long prompt would take most of the memory
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")  # frequencies depend on the longest row, so rows would affect each other
Bidirectional = Literal["image", "prompt"]


class PrefixDecoder(Decoder):
    """A transformers causal language model that reads one feature at each token `image_token_id`.

    `bidirectional`: the tokens that attend to each other both ways, as the model was trained. "image" is each run of
    image tokens; "prompt" is everything before the caption, as in a prefix language model. None is causal attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context_tokens: int,
        image_token_id: int,
        bidirectional: Bidirectional | None = None,
    ) -> None:
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        super().__init__(model, CacheShape(config.num_hidden_layers, heads, size, context_tokens))
        self.image_token_id = image_token_id
        self.bidirectional = bidirectional

    @torch.inference_mode()
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """See Decoder.prefill. Raises ValueError unless prompt_ids[:-1] has one image token per feature."""
        image_positions = self.image_positions(features, prompt_ids)
        for layer in self.text_layers:
            layer.clear(row)
        # The last id is read again by `decode`, but a prompt that attends both ways must see it now.
        count = len(prompt_ids) - (self.bidirectional != "prompt")
        if count == 0:
            return
        ids_1N = upload(prompt_ids[:count], self.device)[None]
        embeddings_1ND = self.model.get_input_embeddings()(ids_1N).to(self.dtype)
        embeddings_1ND[0, upload(image_positions, self.device)] = self.upload_features(features)
        positions_1N = torch.arange(count, device=self.device)[None]
        last_keys_1N = self._last_keys(prompt_ids, image_positions, positions_1N)
        # A fused kernel of CUDA does not keep the scores: one pass costs half of two. Tokens that attend to later ones
        # need the keys of those in the same pass.
        most = count if self.device.type == "cuda" or self.bidirectional else PREFILL_QUERIES
        for start in range(0, count, most):
            queries_1QD = embeddings_1ND[:, start : start + most]
            end = start + queries_1QD.shape[1]
            self._forward(slice(row, row + 1), queries_1QD, positions_1N[:, start:end], end, last_keys_1N[:, start:end])

    def _last_keys(self, prompt_ids: list[int], image_positions: list[int], positions_1N: torch.Tensor) -> torch.Tensor:
        """Return the last position that each of the first N prompt ids attends to, (1, N)."""
        if self.bidirectional is None:
            return positions_1N
        count = positions_1N.shape[1]
        if self.bidirectional == "prompt":
            return torch.full_like(positions_1N, count - 1)
        last_keys = list(range(count))
        for position in reversed(image_positions):
            if prompt_ids[position + 1] == self.image_token_id:
                last_keys[position] = last_keys[position + 1]
        return upload(last_keys, self.device)[None]

    @torch.inference_mode()
    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        """See Decoder.decode."""
        embeddings_B1D = self.model.get_input_embeddings()(ids_B[:, None]).to(self.dtype)
        positions_B1 = positions_B[:, None]
        return self._forward(slice(0, ids_B.shape[0]), embeddings_B1D, positions_B1, span, positions_B1)

    def image_positions(self, features: torch.Tensor, prompt_ids: list[int]) -> list[int]:
        """Return the positions of the image tokens. Raises ValueError unless there is one per feature."""
        found = [i for i, token in enumerate(prompt_ids[:-1]) if token == self.image_token_id]
        count = features.shape[:-1].numel()
        if len(found) != count:
            raise ValueError(f"the prompt has {len(found)} image tokens, the image {count} features")
        return found

    def upload_features(self, features: torch.Tensor) -> torch.Tensor:
        """Return features (image tokens, width) on the device, in the decoder's type."""
        return features.to(self.device, self.dtype, non_blocking=True).flatten(end_dim=-2)

    def rotary_positions(self, rows: slice, positions_BQ: torch.Tensor) -> torch.Tensor:
        """Return what the model's rotary embedding takes for these cache positions."""
        return positions_BQ

    def _forward(
        self,
        rows: slice,
        embeddings_BQD: torch.Tensor,
        positions_BQ: torch.Tensor,
        span: int,
        last_keys_BQ: torch.Tensor,
    ) -> torch.Tensor:
        """Return the last query's logits, (B, vocabulary). Each query attends to the keys up to its `last_keys`."""
        self.window.set(rows, positions_BQ, span)
        output = self.model(
            inputs_embeds=embeddings_BQD,
            position_ids=self.rotary_positions(rows, positions_BQ),
            attention_mask=causal_mask(last_keys_BQ, span, self.dtype),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]


def load_decoder(
    folder: Path,
    manifest: Manifest,
    precision: Precision,
    device: torch.device,
    kind: Callable[[PreTrainedModel, int, int], PrefixDecoder] = PrefixDecoder,
) -> PrefixDecoder:
    """Return the published decoder, see Family.decoder. Raises ArtefactBroken without an image_token_id."""
    if manifest.image_token_id is None:
        raise ArtefactBroken("the manifest has no image_token_id, so the image has no position; export again")
    model = load_weights(AutoModelForCausalLM, folder, precision, device)
    return kind(model, manifest.context_tokens, manifest.image_token_id)


def language_model(
    model: PreTrainedModel,
    text_model: PreTrainedModel,
    context_tokens: int | None = None,
    *,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """Return `text_model` and the head of `model` as a separate causal language model that shares their weights.

    `context_tokens`: the most tokens of a caption with its prompt, if a sliding window covers them all: attention to
    the window is then full attention. `config`: of the causal language model, if `text_model` has a type without one.
    Raises ModelUnsupported for attention that PrefixDecoder's mask or slots would compute wrongly.
    """
    config = copy.deepcopy(text_model.config) if config is None else config
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # some models have one rope for each type of layer
        kind = part.get("rope_type") if isinstance(part, dict) else None
        if kind in BATCH_DEPENDENT_ROPE:
            raise ModelUnsupported(f"rope_type {kind!r} depends on all texts of a batch; it is not supported")
    window = getattr(config, "sliding_window", None)
    if window is not None and (context_tokens is None or context_tokens > window):
        needed = "" if context_tokens is None else f", but image, prompt and caption have {context_tokens} tokens"
        raise ModelUnsupported(f"sliding_window is {window}{needed}; only full attention is supported")
    head = model.get_output_embeddings()
    config.tie_word_embeddings = head.weight is text_model.get_input_embeddings().weight
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config)
    setattr(decoder, decoder.base_model_prefix, text_model)
    decoder.set_output_embeddings(head)
    return decoder.eval()  # type: ignore[no-any-return]
