"""The photos that are shipped: to try the page with and to measure with."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("examples")
PHOTOS = sorted(FOLDER.glob("*.jpg"))
