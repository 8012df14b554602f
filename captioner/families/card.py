"""What a model card says of itself."""

from __future__ import annotations

import re
from pathlib import Path


def license_of(folder: Path) -> str:
    """The `license:` line at the top of the card in `folder/README.md`; "unknown" where there is none."""
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", card.read_text(), re.MULTILINE) if card.is_file() else None
    return found[1] if found else "unknown"
