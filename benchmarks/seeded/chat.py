"""A byte-level tokenizer of any size over made-up words, with a chat template, as Llama's and SmolLM's are."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LETTERS = "etaoinshrdlucmfwygpbvkxqjz"


def save_tokenizer(
    folder: Path, size: int, special: dict[str, int], template: str, *, bos: str, eos: str, adds_bos: bool
) -> None:
    """Writes a tokenizer of `size` tokens; `special` gives the ids of those that no other text becomes.

    With `adds_bos` it puts `bos` in front of what it encodes, unless told not to.
    """
    pairs = list(product("Ġ" + LETTERS, LETTERS))
    words = ((a + b, c + d) for (a, b), (c, d) in product(pairs, pairs[len(LETTERS) :]))
    taken = {token_id: token for token, token_id in special.items()}
    new = chain(((byte,) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())), pairs, words)
    vocabulary, merges = {}, []
    for token_id in range(size):
        parts = (taken[token_id],) if token_id in taken else next(new)
        vocabulary["".join(parts)] = token_id
        if len(parts) == 2:
            merges.append(parts)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, special[bos])])
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=template
    ).save_pretrained(folder)
