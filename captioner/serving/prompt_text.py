"""The prompt that a request asks for, and the check of the client's own texts in it for control tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from captioner.artifacts.languages import language_name
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.prompts import PromptTable
from captioner.errors import ParameterInvalid, ParameterUnsupported
from captioner.wire import CaptionParameters


@dataclass(frozen=True)
class RequestedPrompt:
    """The prompt of one request. `own_texts` are the parts that the client wrote."""

    text: str
    system: str | None
    language: str | None
    own_texts: tuple[str, ...]


def resolve_prompt(manifest: Manifest, parameters: CaptionParameters, written: str) -> RequestedPrompt:
    """Return the prompt that parameters ask for, or the one that the client has `written`, unless it is blank.

    Raises ParameterInvalid for both at once, and ParameterUnsupported for what the model cannot be asked.
    """
    if not written.strip():
        text = manifest.prompts.render(parameters.style, parameters.length, parameters.extras, parameters.name)
        own_texts = [parameters.name]
    else:
        for name in ("style", "length", "extras", "name"):
            if getattr(parameters, name):
                raise ParameterInvalid(f"{name} is given together with a prompt; both set the prompt, so send only one")
        # Most tokens begin with a blank: after another blank come parts of words.
        text = written.rstrip() if manifest.continues_prompt else written
        own_texts = [text]
    language = _language(manifest, parameters)
    if language is not None:
        text = manifest.prompts.in_language(text, language)
    system = parameters.system if (parameters.system or "").strip() else None
    if system is not None and not manifest.system_template:
        raise ParameterUnsupported("system is given; this model has no system turn, so put its text into the prompt")
    own_texts += [language, system]
    return RequestedPrompt(text, system, language, tuple(each for each in own_texts if each is not None))


def _language(manifest: Manifest, parameters: CaptionParameters) -> str | None:
    """Return the name of the language asked for. Raises ParameterUnsupported if the model cannot be asked."""
    language = parameters.language
    if language is None:
        return None
    if manifest.continues_prompt:
        raise ParameterUnsupported(
            f"language is {language!r}; this model follows no instructions, so it only writes the language that it was "
            "trained on"
        )
    if not manifest.prompts.language:
        raise ParameterUnsupported(
            f"language is {language!r}; this model cannot be asked for one; if it follows instructions, export it again"
        )
    return language_name(language)


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
