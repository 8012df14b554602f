"""Render styles, lengths and extras to the exact prompt. Styles are data: each manifest holds its model's table."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from typing import TypeVar

from captioner.errors import ParameterInvalid, ParameterUnsupported

V = TypeVar("V")
# The fields of a template: for the name of the person or character, and for a language.
NAME, LANGUAGE = "{name}", "{language}"
ALT_TEXT = "alt-text"  # the style for readers who cannot see the image
ALT_TEXT_CHARACTERS = 125  # the limit of many screen readers and guidelines
LONG_ALT_TEXT_CHARACTERS = 500  # of the length "long", a description beside the alternative text


@dataclass(frozen=True)
class PromptTable:
    """The prompts that one model was trained with.

    `styles` maps style → length → prompt; `extras` maps an extra's name to the sentence that it adds. `language` is the
    sentence that asks for a language, empty if the model cannot be asked.
    """

    styles: dict[str, dict[str, str]]
    default_style: str
    default_length: str
    extras: dict[str, str] = field(default_factory=dict)
    language: str = ""

    @property
    def takes_name(self) -> bool:
        """Return whether any prompt has a field for a name."""
        templates = [prompt for lengths in self.styles.values() for prompt in lengths.values()]
        return any(NAME in template for template in [*templates, *self.extras.values()])

    def template(self, style: str | None, length: str | None, extras: tuple[str, ...] = ()) -> str:
        """Return the prompt with its NAME field unfilled. None selects the model's default.

        Raises ParameterUnsupported, which names the unknown choice and the known ones.
        """
        lengths = _known("style", self.default_style if style is None else style, self.styles)
        if length is None:
            length = self.default_length if self.default_length in lengths else next(iter(lengths))
        sentences = [_known("length", length, lengths)]
        sentences += [_known("extra", extra, self.extras) for extra in extras]
        return " ".join(sentences)

    def style_of(self, prompt: str) -> str | None:
        """Return the style whose prompt is exactly this text; None if there is no such style."""
        return next((style for style, lengths in self.styles.items() if prompt in lengths.values()), None)

    def render(
        self, style: str | None, length: str | None, extras: tuple[str, ...] = (), name: str | None = None
    ) -> str:
        """Return the exact prompt. Raises ParameterInvalid if it needs a name, ParameterUnsupported if not."""
        prompt = self.template(style, length, extras)
        if name is None and NAME in prompt:
            raise ParameterInvalid("name is not given; the prompt needs the name of a person or character")
        if name is None:
            return prompt
        if NAME not in prompt:
            raise ParameterUnsupported(f"name is {reprlib.repr(name)}; this prompt does not take a name")
        return prompt.replace(NAME, name)

    def in_language(self, prompt: str, name: str) -> str:
        """Return a prompt, of this table or of a client, that also asks for the language of this name."""
        return f"{prompt.rstrip()} {self.language.replace(LANGUAGE, name)}"


def lists_tags(style: str | None) -> bool:
    """Return whether a style of this name writes a list, separated by commas: `tags`, and all that end in `-tags`."""
    return style is not None and (style == "tags" or style.endswith("-tags"))


def _known(what: str, key: str, table: dict[str, V]) -> V:
    if key not in table:
        known = f"it knows {', '.join(table)}" if table else "it knows none"
        raise ParameterUnsupported(f"{what} {reprlib.repr(key)} is not one this model was made for; {known}")
    return table[key]
