"""Family `git`: one transformer that reads the image's tokens, then the text. Example: microsoft/git-base-coco.

A prompt is the beginning of the caption.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, GitConfig, GitForCausalLM, GitVisionConfig, PreTrainedModel

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.kv_cache import CacheShape, causal_mask
from captioner.decoders.load_weights import Precision, load_weights
from captioner.decoders.rows import RowCopy, upload
from captioner.errors import ModelUnsupported
from captioner.families.base import CAPTION_CONTEXT_TOKENS, NO_INSTRUCTIONS, Family, Outline, Source
from captioner.families.generation_config import published_generation, read_generation_config
from captioner.families.preprocessor_config import CLIP_DEFAULTS, check_side, image_spec, read_processor
from captioner.families.vision_encoder import VisionEncoder

PROCESSOR_DEFAULTS = CLIP_DEFAULTS | {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}


class GitDecoder(Decoder):
    """A decoder whose rows hold the image's tokens, then the text's. Text positions still count from 0."""

    def __init__(self, model: PreTrainedModel, context_tokens: int, image_tokens: int) -> None:
        config = model.config
        heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        super().__init__(model, CacheShape(config.num_hidden_layers, heads, size, image_tokens + context_tokens))
        self.context_tokens, self.image_tokens = context_tokens, image_tokens

    @torch.inference_mode()
    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """See Decoder.prefill."""
        for layer in self.text_layers:
            layer.clear(row)
        features_1TD = features.to(self.device, self.dtype, non_blocking=True)[None]
        rows = slice(row, row + 1)
        self.window.set(rows, torch.arange(self.image_tokens, device=self.device)[None], self.image_tokens)
        # No mask: the span ends with the image, whose tokens all attend to each other.
        self.model.git.encoder(features_1TD, past_key_values=self.cache)
        if len(prompt_ids) > 1:
            ids_1Q = upload(prompt_ids[:-1], self.device)[None]
            positions_1Q = torch.arange(ids_1Q.shape[1], device=self.device)[None]
            self._forward(rows, ids_1Q, positions_1Q, ids_1Q.shape[1])

    @torch.inference_mode()
    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        """See Decoder.decode."""
        return self._forward(slice(0, ids_B.shape[0]), ids_B[:, None], positions_B[:, None], span)

    def _forward(self, rows: slice, ids_BQ: torch.Tensor, positions_BQ: torch.Tensor, span: int) -> torch.Tensor:
        """Return the last query's logits, (B, vocabulary)."""
        cached_BQ = positions_BQ + self.image_tokens
        self.window.set(rows, cached_BQ, span + self.image_tokens)
        output = self.model(
            input_ids=ids_BQ,
            position_ids=positions_BQ,
            attention_mask=causal_mask(cached_BQ, self.window.span, self.dtype),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def copy(self, rows: RowCopy, length: int) -> None:
        """See Decoder.copy."""
        super().copy(rows, self.image_tokens + length)


class Git(Family):
    """See the module."""

    model_type = "git"

    @classmethod
    def check(cls, folder: Path) -> Outline:
        """See Family.check."""
        image = image_spec(read_processor(folder, PROCESSOR_DEFAULTS))
        config = GitConfig.from_pretrained(folder, local_files_only=True)
        check_side(image, config.vision_config)
        if config.num_image_with_embedding not in (None, 1):
            raise ModelUnsupported(
                f"num_image_with_embedding is {config.num_image_with_embedding}; only one image is supported, not video"
            )
        _start_and_stop(read_generation_config(folder, config))
        return Outline(image, min(config.max_position_embeddings, CAPTION_CONTEXT_TOKENS))

    @classmethod
    def load(cls, folder: Path) -> Source:
        """See Family.load."""
        outline = cls.check(folder)
        processor = read_processor(folder, PROCESSOR_DEFAULTS)
        model = GitForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        encoder = VisionEncoder(processor, model.git.image_encoder, model.git.visual_projection).eval()
        published = model.generation_config
        start, stop = _start_and_stop(published)
        # Otherwise generate() would add the published settings to the options of every call.
        model.generation_config = GenerationConfig(
            bos_token_id=start, eos_token_id=stop, pad_token_id=published.pad_token_id
        )

        def generate(pixels_HWC: torch.Tensor, prompt_ids: list[int], **options: object) -> list[int]:
            written = model.generate(
                torch.tensor([prompt_ids]), pixel_values=encoder.normalise(pixels_HWC[None]), **options
            )
            return [int(token) for token in written[0][len(prompt_ids) :]]

        return Source(
            vision_encoder=encoder,
            decoder=_without_vision(model),
            generate=generate,
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            image=outline.image,
            prompts=NO_INSTRUCTIONS,
            start_ids=(start,),
            stop_ids=tuple(stop) if isinstance(stop, list) else (stop,),
            context_tokens=outline.context_tokens,
            generation=published_generation(published),
        )

    @classmethod
    def decoder(cls, folder: Path, manifest: Manifest, precision: Precision, device: torch.device) -> Decoder:
        """See Family.decoder."""
        model = load_weights(GitForCausalLM, folder, precision, device)
        return GitDecoder(model, manifest.context_tokens, manifest.feature_tokens)


def _start_and_stop(published: GenerationConfig) -> tuple[int, int | list[int]]:
    start, stop = published.bos_token_id, published.eos_token_id
    if start is None or stop is None:
        raise ModelUnsupported(f"bos_token_id is {start} and eos_token_id {stop}; both must be token ids")
    return start, stop


def _without_vision(model: GitForCausalLM) -> GitForCausalLM:
    """Return the text transformer as a separate model, with the smallest vision tower that transformers can build.

    The real tower is in the ONNX graph, but `from_pretrained` cannot load a model without a tower.
    """
    config = copy.deepcopy(model.config)
    config.num_image_with_embedding = None
    config.vision_config = GitVisionConfig(
        hidden_size=1, intermediate_size=1, num_hidden_layers=0, num_attention_heads=1, image_size=1, patch_size=1
    )
    text: GitForCausalLM = GitForCausalLM(config).eval()
    text.git.embeddings, text.git.encoder, text.output = model.git.embeddings, model.git.encoder, model.output
    return text
