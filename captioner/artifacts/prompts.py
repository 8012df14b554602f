"""Render styles, lengths and extras to the exact prompt. Styles are data: each manifest holds its model's table."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from typing import TypeVar

from captioner.errors import ParameterInvalid, ParameterUnsupported

V = TypeVar("V")
NAME = "{name}"  # the field of a template for the name of the person or character


@dataclass(frozen=True)
class PromptTable:
    """The prompts that one model was trained with.

    `styles` maps style → length → prompt; `extras` maps an extra's name to the sentence that it adds.
    """

    styles: dict[str, dict[str, str]]
    default_style: str
    default_length: str
    extras: dict[str, str] = field(default_factory=dict)

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


def _known(what: str, key: str, table: dict[str, V]) -> V:
    if key not in table:
        known = f"it knows {', '.join(table)}" if table else "it knows none"
        raise ParameterUnsupported(f"{what} {reprlib.repr(key)} is not one this model was made for; {known}")
    return table[key]
