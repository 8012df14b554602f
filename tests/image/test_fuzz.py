"""Mutated files of every format, each decoded as `preprocess` does it: a picture or a typed refusal, every time."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from captioner import errors
from captioner.image.decoder_process import DecoderProcess
from captioner.image.formats import FORMATS, sniff
from captioner.image.spec import ImageSpec
from tests.image.mutations import SEEDS, mutated_files
from tests.image.pictures import NOISE, file

SPEC = ImageSpec(32, 32, "bilinear")
SEED = 14
REFUSALS = {
    each.code
    for each in (
        errors.ImageMissing,
        errors.ImageTooLarge,
        errors.ImageTooSmall,
        errors.ImageFormatUnknown,
        errors.ImageBroken,
    )
}
GOOD = file(NOISE, "JPEG")


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    """A process with the limits of a server."""
    decoder = DecoderProcess(SPEC)
    yield decoder
    decoder.close()


def resident_mib(decoder: DecoderProcess) -> float:
    """The memory of the process that decodes."""
    status = Path(f"/proc/{decoder.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def test_the_valid_files_are_of_every_format_and_decoded(decoder: DecoderProcess) -> None:
    assert {sniff(data) for data in SEEDS} == {each.name for each in FORMATS}
    for data in SEEDS:
        decoder.load_pixels(data)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.exhaustive)])
def test_mutated_files_are_decoded_or_refused_and_the_process_stays(decoder: DecoderProcess, count: int) -> None:
    expected, _ = decoder.load_pixels(GOOD)
    process, outcomes, slowest_s = decoder.pid, Counter[str](), 0.0
    memory_mib, leaks = list[float](), False
    for number, data in enumerate(mutated_files(SEED, count)):
        began = time.monotonic()
        try:
            pixels, info = decoder.load_pixels(data)
            assert pixels.shape == (32, 32, 3) and info.width > 0
            outcome = "decoded"
        except errors.ImageRefused as refused:
            outcome = refused.code
            leaks = leaks or bool(re.search(r"at 0x|<_io|\n", str(refused)))
        assert outcome in REFUSALS | {"decoded"} and decoder.pid == process, f"file {number}: {outcome}"
        outcomes[outcome] += 1
        slowest_s = max(slowest_s, time.monotonic() - began)
        if number % 1000 == 999 or number == count - 1:
            assert np.array_equal(decoder.load_pixels(GOOD)[0], expected)
            memory_mib.append(resident_mib(decoder))
    print(f"{count} files: {dict(outcomes)}, slowest {slowest_s:.2f} s, MiB: {list(map(round, memory_mib))}")
    assert not leaks, "a message names a memory address or has two lines"
    assert outcomes["decoded"] > count // 20 and outcomes["IMAGE_BROKEN"] > count // 20
    quarter = max(1, len(memory_mib) // 4)
    assert min(memory_mib[-quarter:]) < 1.1 * max(memory_mib[:quarter])
