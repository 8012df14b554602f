"""Check the texts that a client puts into a prompt: their size, their encoding, and a model's control tokens."""

from __future__ import annotations

from tokenizers import Tokenizer

from captioner.artifacts.prompts import PromptTable
from captioner.errors import ParameterInvalid, PromptTooLong
from captioner.wire import MAX_PROMPT_CHARACTERS, check_prompt


def decode_prompt(prompt: bytes) -> str:
    """Return the text of a prompt. Raises PromptTooLong before anything is tokenized, and ParameterInvalid."""
    if len(prompt) > 4 * MAX_PROMPT_CHARACTERS:  # a character has at most 4 bytes
        raise PromptTooLong(f"the prompt has {len(prompt)} bytes; the limit is {MAX_PROMPT_CHARACTERS} characters")
    try:
        text = prompt.decode()
    except UnicodeDecodeError as error:
        raise ParameterInvalid(f"prompt is not UTF-8 text: byte {error.start} is {prompt[error.start]:#04x}") from None
    check_prompt(text)
    return text


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
