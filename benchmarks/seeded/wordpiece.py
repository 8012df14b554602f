"""BERT's tokenizer of any size with made-up words, and with special tokens at given ids."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path

from transformers import BertTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["a", "the", "of", "on", "in", "with", "and", "cat", "dog", "man", "photo", "picture", "mat", "fog", "tree"]


def save_tokenizer(folder: Path, size: int, special: dict[str, int]) -> None:
    """Write a tokenizer of `size` tokens; `special` has the ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS), ".", ","]
    made_up = (
        "".join(syllables) for count in (2, 4) for syllables in product(*["bdfgklmnprst", "aeiou"] * (count // 2))
    )
    rare = (f"[unused{number}]" for number in range(size))
    names = chain(WORDS, (letter for letter in letters if letter not in WORDS), made_up, rare)
    special_at = {token_id: token for token, token_id in special.items()}
    vocabulary = {special_at[token_id] if token_id in special_at else next(names): token_id for token_id in range(size)}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
