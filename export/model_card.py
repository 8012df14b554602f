"""What a model card (the README.md in a model's folder) says of its model, as far as machines and people need it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from captioner.artifacts.manifest import Card

LONGEST_USE = 600  # characters
_HEADER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_USE = re.compile(
    r"^#+[ \t]*(?:intended |direct )?uses?\b[^\n]*\n(.*?)(?=^#|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_NO_WORDS = ("#", "<", "|", "```", "---")  # a comment, a table, code
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def read_card(folder: Path) -> Card:
    """Licence and base model of the card's header, the first paragraph under its heading of uses; empty for no card."""
    path = folder / "README.md"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    header = _HEADER.match(text)
    values = _values(header[1]) if header else {}
    licence = _words(values.get("license"))
    if licence == "other":
        licence = _words(values.get("license_name")) or licence
    return Card(licence, _words(values.get("base_model")), _intended_use(text[header.end() :] if header else text))


def _values(header: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError):  # PyYAML lets a date that is none through as ValueError
        return {}
    return found if isinstance(found, dict) else {}


def _words(value: object) -> str:
    """A text, or a list of them; nothing for anything else."""
    texts = value if isinstance(value, list) else [value]
    return ", ".join(" ".join(text.split()) for text in texts if isinstance(text, str))


def _intended_use(text: str) -> str:
    for section in _USE.findall(text):
        paragraphs = (paragraph.strip() for paragraph in re.split(r"\n\s*\n", section))
        words = next((each for each in paragraphs if each and not each.startswith(_NO_WORDS)), "")
        words = " ".join(_LINK.sub(r"\1", words).split())
        if words:
            return (
                textwrap.shorten(words, LONGEST_USE, placeholder="…")
                if " " in words[:LONGEST_USE]
                else words[:LONGEST_USE]
            )
    return ""
