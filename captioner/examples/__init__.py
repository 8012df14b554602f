"""The photos that ship with the package: examples for the page, images for benchmarks, the exporter's golden sample."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
PHOTOS = sorted(FOLDER.glob("*.jpg"))
