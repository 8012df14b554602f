"""A folder as people have them, for `benchmarks.night`: what is in it, and what a job must make of each file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import crops

NAMES = (  # in this order: no two share a stem, except the last two
    "plain.jpg",
    "UPPER.JPG",
    "two words.jpeg",
    " blanks around .jpg",
    "two.dots.jpg",
    "-n.jpg",
    "[1] (copy) {a,b} ~x.jpg",
    "100% *?.jpg",
    'it\'s "quoted".jpg',
    "back\\slash.jpg",
    "a\nline.jpg",
    unicodedata.normalize("NFC", "café.jpg"),
    unicodedata.normalize("NFD", "naïve.jpg"),
    "写真 📷.jpg",
    "x" * 240 + ".jpg",
    "CON.jpg",
    "same.jpg",
    "same.jpeg",
)
NOT_UTF8 = b"caf\xe9.jpg"  # as old cameras and Windows shares leave them
BROKEN = 10
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
LOCKED = 20
OLD = "An old caption"
OLD_LATIN_1 = "Ein alter Käse".encode("latin-1")
EVERY = 10  # of the photos in the main folder has an old caption


@dataclass(frozen=True)
class Made:
    """The folder: `sidecars` maps photos to the text file that a job must write; the job must report `refused`."""

    sidecars: dict[Path, Path]
    refused: set[Path]


def make(folder: Path, photos: int, seed: int) -> Made:
    """Make `photos` files of images in the folder, of which `BROKEN` are broken."""
    images = crops(seed)
    sidecars = _names(folder / "names", images)
    locked = [folder / "locked" / f"{number:03d}.jpg" for number in range(LOCKED)]
    latin_1 = folder / "latin-1.jpg"
    rest = photos - len(sidecars) - BROKEN - LOCKED - 1
    plain = [folder / ("trip", "again")[number % 2] / f"IMG_{number // 2:04d}.jpg" for number in range(rest)]
    for path in (latin_1, *plain, *locked):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(next(images))
    for path in plain[::EVERY]:
        path.with_suffix(".txt").write_text(f"{OLD}\n")
    latin_1.with_suffix(".txt").write_bytes(OLD_LATIN_1)
    broken = _broken(folder / "broken", images)
    (folder / "locked").chmod(0o555)
    return Made(sidecars | {path: path.with_suffix(".txt") for path in plain}, {latin_1, *locked, *broken})


def _names(folder: Path, images: Iterator[bytes]) -> dict[Path, Path]:
    folder.mkdir(parents=True)
    paths = [folder / name for name in NAMES]
    paths.append(Path(bytes(folder).decode() + "/" + NOT_UTF8.decode(errors="surrogateescape")))
    for path in paths:
        path.write_bytes(next(images))
    share_a_stem = [path for path in paths if path.stem == "same"]
    return {path: path.with_name(f"{path.name if path in share_a_stem else path.stem}.txt") for path in paths}


def _broken(folder: Path, images: Iterator[bytes]) -> set[Path]:
    """Return `BROKEN` files that are called images: empty, text, cut short, of another kind, with impossible sizes."""
    folder.mkdir()
    photo = next(images)
    files = {
        "empty.jpg": b"",
        "text.jpg": b"I am not a photo.\n" * 100,
        "page.jpg": b"<!doctype html><title>404</title>",
        "head.jpg": photo[:20],
        "cut.jpg": photo[: len(photo) // 3],
        "zeros.jpg": bytes(4096),
        "cut.png": PNG + b"\x00\x00\x00\x01",
        "huge.png": PNG + 2 * b"\x7f\xff\xff\xff" + b"\x08\x02" + bytes(7),
        "noise.webp": b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(range(24)),
        "pixel.bmp": b"BM" + bytes(60),
    }
    assert len(files) == BROKEN
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {folder / name for name in files}
