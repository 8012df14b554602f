"""A file that takes too long, too much memory or the decoder's process costs its own request alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.errors import ImageBroken, ImageTooLarge, ImageTooSlow, StartupRefused
from captioner.image.decode import load_pixels
from captioner.image.decoder_process import DecoderProcess
from captioner.image.spec import ImageSpec
from captioner.wire import MAX_IMAGE_BYTES
from tests.image.pictures import NOISE, PNG, file, jpeg_of_scans
from tests.support.served import assert_soon

SPEC = ImageSpec(32, 32, "bicubic")
TILES = ImageSpec(32, 32, "bicubic", longest_px=96)
LONG = jpeg_of_scans(10_000)  # a hundred seconds


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    """A process with a time limit of one second."""
    decoder = DecoderProcess(SPEC, seconds=1)
    yield decoder
    decoder.close()


def assert_works(decoder: DecoderProcess) -> None:
    """The next photo is right."""
    assert (decoder.load_pixels(PNG)[0] == load_pixels(PNG, SPEC)[0]).all()


@pytest.mark.parametrize("spec", [SPEC, TILES], ids=["whole", "tiles"])
@pytest.mark.parametrize("data", [PNG, file(NOISE, "JPEG")], ids=["PNG", "JPEG"])
def test_the_process_returns_the_same_pixels_and_info(spec: ImageSpec, data: bytes) -> None:
    decoder = DecoderProcess(spec)
    pixels, info = decoder.load_pixels(data)
    expected, expected_info = load_pixels(data, spec)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected) and info == expected_info
    decoder.close()


def test_a_refusal_keeps_its_code_and_message(decoder: DecoderProcess) -> None:
    for data in (b"", file(NOISE, "PNG")[:100], b"x", PNG + bytes(MAX_IMAGE_BYTES)):
        with pytest.raises(Exception) as inside:  # noqa: PT011  # compared below
            load_pixels(data, SPEC)
        with pytest.raises(type(inside.value)) as outside:
            decoder.load_pixels(data)
        assert str(outside.value) == str(inside.value)


def test_a_file_that_takes_too_long_is_refused_and_the_next_one_is_decoded(decoder: DecoderProcess) -> None:
    began = time.monotonic()
    with pytest.raises(ImageTooSlow, match=f"the file of {len(LONG)} bytes takes more than 1 s of processor time"):
        decoder.load_pixels(LONG)
    assert time.monotonic() - began < 10
    assert_works(decoder)


def test_a_process_that_does_not_run_is_refused_too(decoder: DecoderProcess) -> None:
    os.kill(decoder.pid, signal.SIGSTOP)
    with pytest.raises(ImageTooSlow):
        decoder.load_pixels(PNG)
    assert_works(decoder)


def test_time_is_counted_for_each_file(decoder: DecoderProcess) -> None:
    process = decoder.pid
    for _ in range(4):  # together more than the limit
        decoder.load_pixels(jpeg_of_scans(40))
    assert decoder.pid == process


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_an_error_of_its_file_alone(decoder: DecoderProcess, number: signal.Signals) -> None:
    process = decoder.pid
    threading.Timer(0.2, os.kill, (process, number)).start()
    with pytest.raises(ImageBroken, match=rf"the decoder crashed \({number.name}\) on the file of {len(LONG)} bytes"):
        decoder.load_pixels(LONG)
    assert decoder.pid != process
    assert_works(decoder)


def test_a_file_whose_process_is_killed_is_decoded_by_the_next_one(decoder: DecoderProcess) -> None:
    process, slow = decoder.pid, jpeg_of_scans(60)
    threading.Timer(0.1, os.kill, (process, signal.SIGKILL)).start()
    assert decoder.load_pixels(slow)[1].format == "JPEG"
    assert decoder.pid != process


def test_a_file_that_has_its_process_killed_again_and_again_is_refused(
    decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_killed() -> None:
        DecoderProcess._start(decoder)
        os.kill(decoder.pid, signal.SIGKILL)

    monkeypatch.setattr(decoder, "_start", start_killed)
    os.kill(decoder.pid, signal.SIGKILL)
    with pytest.raises(ImageBroken, match=f"the decoder was killed 2 times on the file of {len(PNG)} bytes"):
        decoder.load_pixels(PNG)
    monkeypatch.undo()
    assert_works(decoder)


def test_a_process_that_was_killed_while_idle_is_replaced(decoder: DecoderProcess) -> None:
    process = decoder.pid
    os.kill(process, signal.SIGKILL)
    assert_soon(lambda: Path(f"/proc/{process}/stat").read_text().split()[2] == "Z")
    assert_works(decoder)


def test_a_file_that_needs_too_much_memory_is_refused() -> None:
    decoder = DecoderProcess(SPEC, max_bytes=200 * 2**20)
    process = decoder.pid
    with pytest.raises(ImageTooLarge, match="takes too much memory"):
        decoder.load_pixels(file(Image.new("RGB", (9000, 9000)), "PNG"))
    assert_works(decoder)
    assert decoder.pid == process
    decoder.close()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_the_process_dies_with_its_parent(busy: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LONG)
    script = (
        "import json, sys\n"
        "from captioner.image.decoder_process import DecoderProcess\n"
        "from captioner.image.spec import ImageSpec\n"
        "decoder = DecoderProcess(ImageSpec(8, 8, 'bicubic'))\n"
        "print(decoder.pid, flush=True)\n"
        + (f"decoder.load_pixels(open({str(tmp_path / 'file')!r}, 'rb').read())\n" if busy else "sys.stdin.read()\n")
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.communicate()
    assert_soon(lambda: not Path(f"/proc/{child}").exists())


def test_a_process_that_cannot_start_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/usr/nowhere")
    with pytest.raises(StartupRefused, match="/usr/nowhere/bin/python3"):
        DecoderProcess(SPEC)
