"""What Gemma 3 and PaliGemma share: a tokenizer of any size with made-up words, and the weights of a tiny model."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from transformers import GemmaTokenizer

from benchmarks.seeded import llava
from benchmarks.seeded.chat import LETTERS

NAMED = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
BLANK = "▁"


def save_tokenizer(folder: Path, size: int, special: dict[str, int], template: str | None, **named: str) -> None:
    """Write a byte-fallback tokenizer of `size` tokens to `folder`.

    `special`: the ids of the special tokens beside NAMED. `named`: those for which transformers' processors ask by
    name, such as `boi_token`.
    """
    pairs = list(product(BLANK + LETTERS, LETTERS))
    words = ((a + b, c + d) for (a, b), (c, d) in product(pairs, pairs[len(LETTERS) :]))
    special_at = {token_id: token for token, token_id in (NAMED | special).items()}
    single = chain((f"<0x{byte:02X}>" for byte in range(256)), BLANK + LETTERS + "\n")
    others = chain(((token,) for token in single), [("\n", "\n")], pairs, words)
    vocabulary: dict[str, int] = {}
    merges: list[Any] = []
    for token_id in range(size):
        parts = (special_at[token_id],) if token_id in special_at else next(others)
        vocabulary["".join(parts)] = token_id
        if len(parts) == 2:
            merges.append(parts)
    GemmaTokenizer(
        vocab=vocabulary,
        merges=merges,
        add_bos_token=True,
        chat_template=template,
        extra_special_tokens=list(special),
        **named,
    ).save_pretrained(folder)


@torch.no_grad()
def enlarge(model: Any, stop_id: int, stop_scale: float, embedding_scale: float) -> None:
    """See llava.enlarge. The head is tied to the embeddings: large ones would repeat the last token."""
    llava.enlarge(model, stop_id, stop_scale)
    model.get_input_embeddings().weight *= embedding_scale
