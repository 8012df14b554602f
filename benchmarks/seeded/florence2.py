"""Florence-2 with seeded weights: tiny, or as large as florence-community/Florence-2-base and -large."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    BartConfig,
    BartTokenizer,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GenerationConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

Size = Literal["tiny", "published", "large"]
START, PAD, STOP, FORCED = 2, 1, 2, 0  # the stop token also starts the decoder, which is then forced to begin with <s>
IMAGE = "<image>"
LOCATIONS = [f"<loc_{number}>" for number in range(1000)]
WORDS = {"tiny": 340, "published": 50265, "large": 50265}  # ids before the location tokens
LETTERS = "etaoinshrdlucmfwygpbvkxqjz"


def save(folder: Path, size: Size, seed: int = 0) -> None:
    """Write the model, its tokenizer, its processor and its card to `folder`."""
    tokenizer = _tokenizer(WORDS[size])
    made = config(size, len(tokenizer), tokenizer.image_token_id)
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(made)
    settings: dict[str, Any] = {"num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True}
    if size == "tiny":
        settings = {}
        with torch.no_grad():  # captions differ in length, and do not repeat one token
            model.get_input_embeddings().weight[STOP] *= 3  # type: ignore[index,operator]  # tied to the output head
            model.model.language_model.decoder.embed_positions.weight *= 4
    model.generation_config = GenerationConfig(
        bos_token_id=0, pad_token_id=PAD, eos_token_id=STOP, decoder_start_token_id=START, forced_bos_token_id=FORCED,
        **settings,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = 32 if size == "tiny" else 768
    CLIPImageProcessorPil(
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_seq_length=17 if size == "tiny" else 577,
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nSeeded random weights.\n")


def config(size: Size, vocabulary: int, image_token_id: int) -> Florence2Config:
    """Return the whole configuration for a tokenizer with `vocabulary` tokens."""
    vision: dict[str, Any]
    if size == "tiny":
        vision = {"embed_dim": (16, 24), "depths": (1, 2), "num_heads": (2, 4), "num_groups": (2, 4)}
        vision |= {
            "patch_size": (7, 3),
            "patch_stride": (4, 2),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
        }
        vision |= {"window_size": 3, "projection_dim": 32, "max_position_embeddings": 8, "initializer_range": 0.3}
        layers, heads, width, positions, spread = 2, 2, 32, 256, 0.2
    elif size == "published":
        vision = {"projection_dim": 768}  # the classes' defaults are those of the base model
        layers, heads, width, positions, spread = 6, 12, 768, 1024, 0.02
    else:
        vision = {"embed_dim": (256, 512, 1024, 2048), "num_heads": (8, 16, 32, 64), "num_groups": (8, 16, 32, 64)}
        layers, heads, width, positions, spread = 12, 16, 1024, 1024, 0.02
    text = BartConfig(
        vocab_size=-(-vocabulary // 64) * 64,  # padded, as the published models
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=2 * width if size == "tiny" else 4 * width,
        decoder_ffn_dim=2 * width if size == "tiny" else 4 * width,
        max_position_embeddings=positions,
        init_std=spread,
    )
    return Florence2Config(text_config=text.to_dict(), vision_config=vision, image_token_id=image_token_id)


def _tokenizer(words: int) -> Any:
    """Return BART's tokenizer of all bytes, letter pairs and four-letter words; then IMAGE and LOCATIONS."""
    pairs = list(product("Ġ" + LETTERS, LETTERS))
    long_words = ((a + b, c + d) for (a, b), (c, d) in product(pairs, pairs[len(LETTERS) :]))
    tokens = chain(((byte,) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())), pairs, long_words)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    parts = [part for part, _ in zip(tokens, range(words - len(special)), strict=False)]
    names = [*special[:4], *("".join(part) for part in parts), special[4]]
    merges: Any = [part for part in parts if len(part) == 2]  # annotated as strings, but it accepts pairs
    tokenizer = BartTokenizer(
        vocab={name: token_id for token_id, name in enumerate(names)},
        merges=merges,
        extra_special_tokens={"image_token": IMAGE},
    )
    added: Any = [AddedToken(name, special=True, normalized=False) for name in LOCATIONS]
    tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer
