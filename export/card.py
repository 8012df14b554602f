"""What a model card (the README.md in a model's folder) says of its model, as far as machines and people need it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard

from captioner.manifest import Card

LONGEST_USE = 600  # characters
_USE = re.compile(
    r"^#+[^\n]*\b(?:intended use|uses?)\b[^\n]*\n(.*?)(?=^#|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def read_card(folder: Path) -> Card:
    """Licence and base model of the card's header, the first paragraph under its heading of uses; empty for no card."""
    path = folder / "README.md"
    if not path.is_file():
        return Card()
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except ValueError:  # a header that is no YAML
        return Card(intended_use=_intended_use(path.read_text("utf-8", "replace")))
    terms = card.data.get("license") or ""
    if terms == "other":
        terms = card.data.get("license_name") or terms
    bases = card.data.get("base_model") or []
    bases = bases if isinstance(bases, list) else [bases]
    return Card(str(terms), ", ".join(map(str, bases)), _intended_use(card.text))


def _intended_use(text: str) -> str:
    for section in _USE.findall(text):
        paragraph = next((part for part in re.split(r"\n\s*\n", section.strip()) if part and part[0] not in "#<|"), "")
        words = " ".join(_LINK.sub(r"\1", paragraph).split())
        if words:
            return words if len(words) <= LONGEST_USE else words[: LONGEST_USE - 1].rsplit(" ", 1)[0] + "…"
    return ""
