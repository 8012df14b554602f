"""A prompt with fields, which each image of a job fills: its file name, its tags, and the name that the user gave."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from captioner.artifacts.prompts import NAME
from captioner.bulk.sources.discover import FoundImage
from captioner.errors import ImageRefused, ParameterInvalid
from captioner.wire import MAX_PROMPT_CHARACTERS

FILENAME, TAGS = "{filename}", "{tags}"
TAGS_EXTENSION = ".txt"  # of the sidecar that holds the tags
_FIELD = re.compile("|".join(map(re.escape, (FILENAME, NAME, TAGS))))


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt that holds at least one of the fields. Other braces are text."""

    text: str
    name: str | None = None

    @classmethod
    def of(cls, prompt: str | None, name: str | None) -> PromptTemplate | None:
        """Return the template of a prompt, None if it has no fields. Raises ParameterInvalid for a missing name."""
        fields = _FIELD.findall(prompt or "")
        if NAME in fields and not (name or "").strip():
            raise ParameterInvalid(f"name is not given; the prompt has {NAME}")
        return cls(prompt or "", name) if fields else None

    def fill(self, image: FoundImage) -> str:
        """Return the prompt of one image. Raises ImageRefused if its tags cannot be read, or if it is too long.

        A value becomes one line without control characters. A value that looks like a field stays as it is.
        """
        values = {field: self._value(field, image) for field in set(_FIELD.findall(self.text))}
        prompt = _FIELD.sub(lambda field: values[field[0]], self.text)
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ImageRefused(f"its prompt has {len(prompt)} characters; the limit is {MAX_PROMPT_CHARACTERS}")
        return prompt

    def _value(self, field: str, image: FoundImage) -> str:
        if field == TAGS:
            return _tags(image)
        return _one_line(_filename(image) if field == FILENAME else self.name or "")


def _filename(image: FoundImage) -> str:
    """Return the name of the image's file without its folder and extension."""
    key = unquote(urlsplit(image.item.url).path) if image.item.url else image.item.key
    return PurePosixPath(key).stem


def _tags(image: FoundImage) -> str:
    """Return the text of the sidecar beside an image."""
    item = image.item
    if item.url or item.member is not None or image.temporary:
        raise ImageRefused(f"the prompt has {TAGS}, which are read from a {TAGS_EXTENSION} file beside an image")
    path = item.path.with_name(image.stem.rpartition("/")[2] + TAGS_EXTENSION)
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_PROMPT_CHARACTERS + 1)  # a character has at most 4 bytes
        tags = _one_line(data.decode("utf-8-sig"))
    except OSError as error:
        raise ImageRefused(f"the prompt has {TAGS}, but {path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ImageRefused(f"the prompt has {TAGS}, but {path.name} is not UTF-8 text, or too long") from None
    if not tags:
        raise ImageRefused(f"the prompt has {TAGS}, but {path.name} is empty")
    return tags


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return "".join(character for character in words if unicodedata.category(character) not in ("Cc", "Cs"))
