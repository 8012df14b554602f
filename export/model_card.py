"""The licence, base model and intended use from a model card, the README.md in a model's folder."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from captioner.artifacts.manifest import Card

MAX_USE = 600  # characters
_HEADER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_USE = re.compile(
    r"^#+[ \t]*(?:intended |direct )?uses?\b[^\n]*\n(.*?)(?=^#|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_NOT_PROSE = ("#", "<", "|", "```", "---")  # headings, comments, tables, code, rules
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def read_card(folder: Path) -> Card:
    """Return licence and base model from the header, and the first paragraph under a heading of uses.

    A missing card, or a missing part, gives empty strings.
    """
    path = folder / "README.md"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    header = _HEADER.match(text)
    values = _values(header[1]) if header else {}
    licence = _text(values.get("license"))
    if licence == "other":
        licence = _text(values.get("license_name")) or licence
    return Card(licence, _text(values.get("base_model")), _intended_use(text[header.end() :] if header else text))


def _values(header: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError):  # PyYAML raises ValueError for an invalid date
        return {}
    return values if isinstance(values, dict) else {}


def _text(value: object) -> str:
    """Return a string, or a list of strings joined by commas, on one line; empty for any other value."""
    texts = value if isinstance(value, list) else [value]
    return ", ".join(" ".join(text.split()) for text in texts if isinstance(text, str))


def _intended_use(text: str) -> str:
    for section in _USE.findall(text):
        paragraphs = (paragraph.strip() for paragraph in re.split(r"\n\s*\n", section))
        prose = next((each for each in paragraphs if each and not each.startswith(_NOT_PROSE)), "")
        prose = " ".join(_LINK.sub(r"\1", prose).split())
        if prose:
            return textwrap.shorten(prose, MAX_USE, placeholder="…") if " " in prose[:MAX_USE] else prose[:MAX_USE]
    return ""
