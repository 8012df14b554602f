"""How a caption becomes the text that is written: edited, decorated, and merged with an existing caption."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from captioner.errors import OutputRefused

Existing = Literal["skip", "overwrite", "append", "prepend"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TAG_END = re.compile(r",(?![^()]*\))")  # not inside the parentheses of a weight


@dataclass(frozen=True)
class CaptionEdit:
    """The text is `trigger, prefix caption suffix`. `existing` says what happens to an existing caption.

    Sentences or tags of the caption that hold a text of `drop` are left out. In what remains, the first text of each
    pair in `replace` becomes the second. Both match whole words, `drop` in any case. `tags`: captions list tags.
    """

    existing: Existing = "skip"
    prefix: str = ""
    suffix: str = ""
    trigger: str = ""
    separator: str = " "
    tags: bool = False
    drop: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()

    @property
    def streams(self) -> bool:
        """Whether a caption can be printed piece by piece: no edit needs the whole of it."""
        return not (self.trigger or self.drop or self.replace)

    def decorated(self, caption: str) -> str:
        """Return the caption edited, with trigger, prefix and suffix. Raises OutputRefused if nothing of it is left."""
        return self._triggered(self._body(caption))

    def merged(self, caption: str, current: str | None) -> str:
        """Return the whole new text, given the existing caption `current`. Raises what `decorated` raises."""
        new = self._body(caption)
        if current and self.existing in ("append", "prepend"):
            first, second = (current, new) if self.existing == "append" else (new, current)
            new = self._joined(self._without_trigger(first), self._without_trigger(second))
        return self._triggered(new)

    def _body(self, caption: str) -> str:
        return f"{self.prefix}{self._replaced(self._without_dropped(caption))}{self.suffix}"

    def _without_dropped(self, caption: str) -> str:
        dropped = [text for text in self.drop if _words(text, re.IGNORECASE).search(caption)]
        if not dropped:
            return caption
        is_list = self.tags or not re.search(r"[.!?](\s|$)", caption)
        parts = [part.strip() for part in (_TAG_END if is_list else _SENTENCE_END).split(caption)]
        kept = [part for part in parts if not any(_words(text, re.IGNORECASE).search(part) for text in dropped)]
        if not kept:
            raise OutputRefused(f"--drop {dropped[0]!r} leaves nothing of the caption {caption!r}")
        return (", " if is_list else " ").join(kept)

    def _replaced(self, caption: str) -> str:
        text = caption
        for old, new in self.replace:
            # An empty text leaves no doubled blank.
            text = _words(old).sub(new.replace("\\", r"\\"), text) if new else _words(old, after=" ?").sub("", text)
        if self.replace and not text.strip():
            raise OutputRefused(f"--replace leaves nothing of the caption {caption!r}")
        return text

    def _joined(self, first: str, second: str) -> str:
        if self.separator.strip() == ",":
            first, second = first.rstrip(", \t\r\n"), second.lstrip(", \t\r\n")
        return f"{first}{self.separator}{second}" if first and second else first or second

    def _triggered(self, text: str) -> str:
        """Return the text with the trigger in front, once; of a list of tags, each tag once."""
        if self.trigger and not _words(self.trigger, re.IGNORECASE, before=r"\s*").match(text):
            text = f"{self.trigger}, {text}" if text else self.trigger
        if not self.tags or self.separator.strip() != ",":
            return text
        tags: dict[str, str] = {}
        for tag in map(str.strip, _TAG_END.split(text)):
            tags.setdefault(tag.casefold().replace("_", " "), tag)
        return ", ".join(tag for tag in tags.values() if tag)

    def _without_trigger(self, text: str) -> str:
        if not self.trigger:
            return text
        return re.sub(rf"\A(\s*{re.escape(self.trigger)}\s*(,\s*|\Z))+", "", text, flags=re.IGNORECASE)


def _words(text: str, flags: int = 0, before: str = "", after: str = "") -> re.Pattern[str]:
    """Return the pattern of a text that neither begins nor ends inside a word."""
    return re.compile(rf"{before}(?<!\w){re.escape(text)}(?!\w){after}", flags)
