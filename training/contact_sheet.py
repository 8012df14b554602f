"""Write one HTML page with photos and their captions, for checking by eye. The photos may not be published."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from captioner.embedded import Form
from training.dataset import Photo
from training.results import Results

FORMS: tuple[Form, ...] = ("short", "medium", "plain")
HEAD = """<!doctype html><meta charset="utf-8"><title>Unselected captions</title>
<style>body{font:14px sans-serif;display:grid;grid-template-columns:repeat(5,1fr);gap:12px;margin:12px}
figure{margin:0}img{width:100%;aspect-ratio:1}p{margin:3px 0}.r{color:#777}</style>
"""


def write(path: Path, data: Path, photos: list[Photo], results: Results) -> None:
    """Write one figure per photo: image, number, confidence, short, medium and plain caption, one reference."""
    rows = {photo.file: row for row, photo in enumerate(results.photos)}
    parts = [HEAD]
    for number, photo in enumerate(photos, 1):
        row = rows[photo.file]
        image = base64.b64encode((data / photo.file).read_bytes()).decode()
        texts = [results.captions[form][row].text for form in FORMS]
        reference = photo.captions[min(1, len(photo.captions) - 1)].text
        captions = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
        parts.append(
            f'<figure><img src="data:image/webp;base64,{image}"><p><b>{number}</b> {results.confidence[row]:.0%}</p>'
            f'{captions}<p class="r">{html.escape(reference)}</p></figure>\n'
        )
    path.write_text("".join(parts))
