"""The photos that ship with the package: examples on the page, benchmark input, the exporter's golden image."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
PHOTOS = sorted(FOLDER.glob("*.jpg"))
