"""How a caption becomes the text that is written: decorated, and merged with an existing caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Existing = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class CaptionEdit:
    """The text is `trigger, prefix caption suffix`. `existing` says what happens to an existing caption."""

    existing: Existing = "skip"
    prefix: str = ""
    suffix: str = ""
    trigger: str = ""
    separator: str = " "

    @property
    def lead(self) -> str:
        """Everything in front of the caption."""
        return (f"{self.trigger}, " if self.trigger else "") + self.prefix

    def decorated(self, caption: str) -> str:
        """Return the caption with trigger, prefix and suffix."""
        return f"{self.lead}{caption}{self.suffix}"

    def merged(self, caption: str, current: str | None) -> str:
        """Return the whole new text, given the existing caption `current`."""
        new = self.decorated(caption)
        if current and self.existing == "append":
            return f"{current}{self.separator}{new}"
        if current and self.existing == "prepend":
            return f"{new}{self.separator}{current}"
        return new
