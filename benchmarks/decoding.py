"""Decoding image files: what the decoder process adds to ordinary photos, and what the largest legal files take.

Times are processor time of all processes involved, so that a busy machine does not change the ratios.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from captioner import examples
from captioner.image.decode import load_pixels
from captioner.image.decoder_process import DecoderProcess
from captioner.image.limits import DECODE_SECONDS, DECODER_BYTES, MAX_PIXELS
from captioner.image.spec import ImageSpec

SPEC = ImageSpec(224, 224, "bicubic")
LARGEST: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 20, "progressive": True, "subsampling": 0},
    "PNG": {"compress_level": 1},
    "WEBP": {"lossless": True, "method": 0, "quality": 0},
    "AVIF": {"quality": 30, "speed": 10},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


def main() -> None:
    """Print a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="decodes of each ordinary photo")
    parser.add_argument("--side-px", type=int, default=int(MAX_PIXELS**0.5), help="of the largest files")
    options = parser.parse_args()
    ordinary, largest = {}, {}
    for name, data in _photos():
        alone, guarded = _ordinary(data, options.rounds if len(data) < 2**19 else max(1, options.rounds // 20))
        ordinary[name] = {"alone_ms": alone, "process_ms": guarded, "ratio": guarded / alone}
        print(f"{name}: {alone:.2f} ms alone, {guarded:.2f} ms in a process ({guarded / alone:.2f}x)", flush=True)
    picture = _gradients(options.side_px)
    for file_format, encoding in LARGEST.items():
        saved = io.BytesIO()
        (picture.convert("RGB") if file_format == "JPEG" else picture).save(saved, file_format, **encoding)
        seconds, peak_mib = _largest(saved.getvalue())
        largest[file_format] = {"file_mib": len(saved.getvalue()) / 2**20, "s": seconds, "peak_mib": peak_mib}
        print(f"{file_format} of {options.side_px} px: {seconds:.1f} s, {peak_mib:.0f} MiB", flush=True)
    limits = {"s": DECODE_SECONDS, "mib": DECODER_BYTES >> 20}
    print(json.dumps({"benchmark": "decoding", "ordinary": ordinary, "largest": largest, "limits": limits}))


def _photos() -> Iterator[tuple[str, bytes]]:
    for path in examples.PHOTOS:
        yield path.name, path.read_bytes()
    saved = io.BytesIO()
    Image.open(examples.PHOTOS[0]).resize((4000, 3000)).save(saved, "JPEG", quality=90)
    yield f"{examples.PHOTOS[0].name} at 12 MP", saved.getvalue()


def _gradients(side_px: int) -> Image.Image:
    """A transparent picture of smooth colors, so that files stay small."""
    row = np.linspace(0, 255, side_px).astype(np.uint8)
    across = Image.fromarray(np.ascontiguousarray(np.broadcast_to(row, (side_px, side_px))))
    down = across.transpose(Image.Transpose.TRANSPOSE)
    return Image.merge("RGBA", (across, down, across, down))


def _ordinary(data: bytes, rounds: int) -> tuple[float, float]:
    """Return the ms of a decode in this process, and through a decoder process."""
    decoder = DecoderProcess(SPEC)
    child = psutil.Process(decoder.pid)

    def ms(call: Callable[[bytes], object]) -> float:
        began = time.process_time() + sum(child.cpu_times()[:2])
        for _ in range(rounds):
            call(data)
        return (time.process_time() + sum(child.cpu_times()[:2]) - began) * 1000 / rounds

    result = ms(lambda file: load_pixels(file, SPEC)), ms(decoder.load_pixels)
    decoder.close()
    return result


def _largest(data: bytes) -> tuple[float, float]:
    """Return the processor time in s and the peak memory in MiB of a decoder process for one file."""
    decoder = DecoderProcess(SPEC)
    child = psutil.Process(decoder.pid)
    began = sum(child.cpu_times()[:2])
    decoder.load_pixels(data)
    seconds = sum(child.cpu_times()[:2]) - began
    status = Path(f"/proc/{decoder.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    decoder.close()
    return seconds, peak_kib / 1024


if __name__ == "__main__":
    main()
