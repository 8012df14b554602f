"""Photos beside what is written of them, as one HTML page for the eye; the photos themselves stay where they are."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from training.dataset import Photo
from training.figures import Figures

HEAD = """<!doctype html><meta charset="utf-8"><title>Unpicked captions</title>
<style>body{font:14px sans-serif;display:grid;grid-template-columns:repeat(5,1fr);gap:12px;margin:12px}
figure{margin:0}img{width:100%;aspect-ratio:1}p{margin:3px 0}.r{color:#777}</style>
"""


def write(path: Path, data: Path, photos: list[Photo], figures: Figures) -> None:
    """One figure a photo: the picture, its number, the medium and the plain caption, a reference."""
    rows = {photo.file: row for row, photo in enumerate(figures.photos)}
    parts = [HEAD]
    for number, photo in enumerate(photos, 1):
        row = rows[photo.file]
        picture = base64.b64encode((data / photo.file).read_bytes()).decode()
        texts = [figures.captions["medium"][row].text, figures.captions["plain"][row].text]
        reference = photo.captions[min(1, len(photo.captions) - 1)].text
        said = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
        parts.append(
            f'<figure><img src="data:image/webp;base64,{picture}"><p><b>{number}</b> {figures.confidence[row]:.0%}</p>'
            f'{said}<p class="r">{html.escape(reference)}</p></figure>\n'
        )
    path.write_text("".join(parts))
