"""A byte-level BPE tokenizer of any size with made-up words and a chat template, like those of Llama and SmolLM."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LETTERS = "etaoinshrdlucmfwygpbvkxqjz"


def save_tokenizer(
    folder: Path, size: int, special: dict[str, int], template: str, *, bos: str | None, eos: str, adds_bos: bool
) -> None:
    """Write a tokenizer of `size` tokens to `folder`; `special` has the ids of its special tokens.

    With `adds_bos`, it puts `bos` before each encoded text, unless add_special_tokens is False.
    """
    pairs = list(product("Ġ" + LETTERS, LETTERS))
    words = ((a + b, c + d) for (a, b), (c, d) in product(pairs, pairs[len(LETTERS) :]))
    special_at = {token_id: token for token, token_id in special.items()}
    others = chain(((byte,) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())), pairs, words)
    vocabulary, merges = {}, []
    for token_id in range(size):
        parts = (special_at[token_id],) if token_id in special_at else next(others)
        vocabulary["".join(parts)] = token_id
        if len(parts) == 2:
            merges.append(parts)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special[bos or ""])]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=template
    ).save_pretrained(folder)
