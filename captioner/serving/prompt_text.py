"""Check the texts that a client puts into a prompt for a model's control tokens."""

from __future__ import annotations

from tokenizers import Tokenizer

from captioner.artifacts.prompts import PromptTable
from captioner.errors import ParameterInvalid


class ControlTokens:
    """The special tokens that a client's text must not contain: all but those in the model's own prompts.

    They could end the user's turn of a chat and begin another.
    """

    def __init__(self, tokenizer: Tokenizer, prompts: PromptTable) -> None:
        own = [prompt for lengths in prompts.styles.values() for prompt in lengths.values()]
        special = {
            number: each.content for number, each in tokenizer.get_added_tokens_decoder().items() if each.special
        }
        self._tokenizer = tokenizer
        self._ids = frozenset(number for number, text in special.items() if not any(text in prompt for prompt in own))

    def check(self, text: str) -> None:
        """Raise ParameterInvalid for a text with a control token, which it names."""
        found = self._ids.intersection(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if found:
            token = self._tokenizer.id_to_token(min(found))
            raise ParameterInvalid(f"the prompt contains {token!r}, a control token of this model; leave it out")
