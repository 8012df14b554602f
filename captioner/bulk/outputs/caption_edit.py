"""How a new caption becomes the text that is written: decorated, and joined to what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Existing = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class Edit:
    """`trigger, prefix caption suffix`; what is there is left, replaced, or stands before or after it."""

    existing: Existing = "skip"
    prefix: str = ""
    suffix: str = ""
    trigger: str = ""
    separator: str = " "

    @property
    def lead(self) -> str:
        """All that stands in front of the caption."""
        return (f"{self.trigger}, " if self.trigger else "") + self.prefix

    def decorated(self, caption: str) -> str:
        """The caption as it is to be read."""
        return f"{self.lead}{caption}{self.suffix}"

    def text(self, caption: str, there: str | None) -> str:
        """The whole new text, where `there` is what is there."""
        new = self.decorated(caption)
        if there and self.existing == "append":
            return f"{there}{self.separator}{new}"
        if there and self.existing == "prepend":
            return f"{new}{self.separator}{there}"
        return new
