"""ViT and GPT-2 with seeded weights: tiny, or as large as nlpconnect/vit-gpt2-image-captioning."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2Tokenizer,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

Size = Literal["tiny", "published"]
END = "<|endoftext|>"  # begins a caption and ends it
LETTERS = "etaoinshrdlucmfwygpbvkxqjz"
TINY_STOP = 147  # the tiny model's stop token; its logit is scaled, so that captions differ in length


def save(folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`."""
    vision, text = _configs(size)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    start, stop = text.bos_token_id, TINY_STOP if size == "tiny" else text.eos_token_id
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = start, stop, stop
    torch.manual_seed(seed)
    model = VisionEncoderDecoderModel(config)
    if size == "tiny":
        with torch.no_grad():
            model.get_submodule("decoder.transformer.wte").weight[TINY_STOP] *= 2  # type: ignore[index,operator]  # tied to the output head
    model.generation_config.update(decoder_start_token_id=start, eos_token_id=stop, pad_token_id=stop)
    model.save_pretrained(folder)
    _tokenizer(text.vocab_size).save_pretrained(folder)
    side = config.encoder.image_size
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nSeeded random weights.\n")


def _configs(size: Size) -> tuple[ViTConfig, GPT2Config]:
    if size == "published":
        # GPT-2 has no padding token, so the published model pads with its end token.
        return ViTConfig(), GPT2Config(add_cross_attention=True, pad_token_id=50256)
    vision = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    text = GPT2Config(
        vocab_size=300,
        n_positions=48,
        n_embd=32,
        n_layer=2,
        n_head=2,
        add_cross_attention=True,
        initializer_range=0.35,
        bos_token_id=299,
        eos_token_id=299,
        pad_token_id=299,
    )
    return vision, text


def _tokenizer(size: int) -> GPT2Tokenizer:
    """Return a GPT2Tokenizer of all bytes, letter pairs and four-letter words; `END` is the last token."""
    pairs = list(product("Ġ" + LETTERS, LETTERS))
    words = ((a + b, c + d) for (a, b), (c, d) in product(pairs, pairs[len(LETTERS) :]))
    tokens = chain(((byte,) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())), pairs, words)
    parts = [part for part, _ in zip(tokens, range(size - 1), strict=False)]
    vocabulary = {"".join(part): token_id for token_id, part in enumerate(parts)}
    merges: Any = [part for part in parts if len(part) == 2]  # annotated as strings, but it accepts pairs
    return GPT2Tokenizer(vocab=vocabulary | {END: size - 1}, merges=merges, bos_token=END, eos_token=END, unk_token=END)
