"""Mutated image files: a stream that a seed determines, of every format."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

from captioner.image.formats import FORMATS
from tests.image.pictures import HEIC, NOISE, cmyk_profile, file, half_transparent, picture, png_claiming, rgb_profile

Mutate = Callable[[random.Random, bytes], bytes]


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a cat", 72.0
    return exif


def _seeds() -> Iterator[bytes]:
    """Valid files: each format with its variants of coding, color, profile, rotation and frames."""
    later: dict[str, object] = {"save_all": True, "append_images": [picture(64, 48), NOISE.rotate(90)]}
    tagged: dict[str, object] = {"icc_profile": rgb_profile("GRB"), "exif": _exif()}
    bits = picture().convert("1")
    yield file(NOISE, "JPEG", subsampling=0)
    yield file(NOISE, "JPEG", progressive=True)
    yield file(NOISE, "JPEG", **tagged)
    yield file(NOISE.convert("CMYK"), "JPEG", icc_profile=cmyk_profile())
    yield file(NOISE, "MPO", save_all=True, append_images=[picture(64, 48)])
    for image in (NOISE, NOISE.quantize(64), NOISE.convert("I;16"), NOISE.convert("LA"), half_transparent(), bits):
        yield file(image, "PNG", icc_profile=rgb_profile())
    for file_format in ("PNG", "GIF", "WEBP", "AVIF", "TIFF"):
        yield file(Image.new("RGB", (64, 48)), file_format, **later)
    yield file(NOISE, "GIF", interlace=1, comment=b"a comment")
    yield file(half_transparent(), "WEBP")
    yield file(NOISE, "WEBP", lossless=False, **tagged)
    for image in (NOISE, NOISE.quantize(16), bits, half_transparent()):
        yield file(image, "BMP")
        yield file(image, "ICO", sizes=[(24, 16)])
    yield file(NOISE, "ICO", sizes=[(64, 48)], bitmap_format="bmp")
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield file(NOISE, "TIFF", compression=compression, icc_profile=rgb_profile("GRB"))
    yield file(bits, "TIFF", compression="group4")
    yield file(NOISE.convert("CMYK"), "TIFF", compression="tiff_lzw")
    yield file(NOISE, "AVIF", **tagged)
    yield file(half_transparent(), "AVIF", **tagged)
    yield from HEIC.values()


SEEDS = tuple(_seeds())
_SIGNATURES = tuple(magic.replace(b"?", b"\0") for each in FORMATS for magic in each.magic)
_LIES = (0, 1, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


def _flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16, 64))):
        at = int(draw.random() ** draw.choice((1, 3)) * len(data))  # half of them mostly near the beginning
        changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def _splice(draw: random.Random, data: bytes) -> bytes:
    other = draw.choice(SEEDS)
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def _repeat(draw: random.Random, data: bytes) -> bytes:
    start, end = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:end] + data[start:end] * draw.choice((1, 2, 50)) + data[end:]


def _lie_in_the_header(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        form = draw.choice(("<H", ">H", "<I", ">I"))
        at = draw.randrange(4, max(5, min(len(data) - 4, draw.choice((64, 600)))))
        value = draw.choice(_LIES) & (0xFFFF if form.endswith("H") else 0xFFFF_FFFF)
        changed[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(changed)


def _enlarge_the_header(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(4, min(len(data), 64))
    filling = draw.choice((b"\0", b"\xff", b"A", draw.randbytes(64)))
    return data[:at] + filling * (draw.choice((100, 65_536, 500_000)) // len(filling)) + data[at:]


def _polyglot(draw: random.Random, data: bytes) -> bytes:
    return draw.choice(
        (
            draw.choice(_SIGNATURES) + data,
            draw.choice(SEEDS) + data,
            b"%PDF-1.7\n" + data,
            data + b"PK\3\4" + draw.randbytes(100),
            (signature := draw.choice(_SIGNATURES)) + data[len(signature) :],
        )
    )


def _bomb(draw: random.Random, data: bytes) -> bytes:
    del data
    side = draw.choice((5_000, 9_999, 12_000, 16_384, 65_535, 2**31 - 1))
    pixels = zlib.compress(bytes(draw.choice((1000, 2**20, 2**24))), 9)
    claim = png_claiming(side, draw.choice((8, 600, side)))
    chunk = b"IDAT" + pixels
    at = claim.index(b"IDAT") - 4
    return claim[:at] + struct.pack(">I", len(pixels)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + claim[at:]


MUTATIONS: tuple[Mutate, ...] = (
    _flip_bits,
    _flip_bits,
    _flip_bits,
    _truncate,
    _splice,
    _repeat,
    _lie_in_the_header,
    _lie_in_the_header,
    _enlarge_the_header,
    _polyglot,
)


def mutated_files(seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` files, each from a random valid file by one or two random mutations."""
    draw = random.Random(seed)
    for number in range(count):
        data = draw.choice(SEEDS)
        for _ in range(draw.choice((1, 1, 2))):
            data = draw.choice(MUTATIONS)(draw, data) or b"\0"
        yield _bomb(draw, data) if number % 100 == 99 else data
