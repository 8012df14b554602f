"""The model `preprocess` on a real server: hostile files, a dead decoder and direct requests cost no other caption."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from captioner import errors, examples
from captioner.client import Client
from tests.image.pictures import NOISE, file, jpeg_of_scans
from tests.support.served import Served, assert_soon

pytestmark = pytest.mark.triton
PHOTO = examples.FOLDER / "cat.jpg"
SLOW = jpeg_of_scans(10_000)  # a hundred seconds


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc) as client:
        yield client


def decoders() -> list[psutil.Process]:
    """The decoder processes of the server that this test process started."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "captioner.image.decoder_process" in process.cmdline()
    ]


def direct(served: Served, image: bytes) -> tritonclient.grpc.InferResult:
    """The answer of `preprocess`. A caption's own request looks the same to the model."""
    connection = tritonclient.grpc.InferenceServerClient(served.grpc)
    tensor = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
    try:
        return connection.infer("preprocess", [tensor])
    except InferenceServerException as error:
        raise errors.from_wire(error.message()) from None
    finally:
        connection.close()


def test_a_decoder_that_dies_idle_costs_nothing(served: Served, client: Client) -> None:
    before = client.caption(PHOTO).text
    dead = decoders()
    assert len(dead) == 2
    for process in dead:
        process.kill()
    for turn in range(4):  # another file each time, so that no answer comes from the feature cache
        assert client.caption(PHOTO.read_bytes() + bytes(turn + 1)).text == before
    assert not {process.pid for process in decoders()} & {process.pid for process in dead}


def test_two_slow_files_are_decoded_at_once_and_a_crash_is_the_error_of_its_own_request(
    served: Served, client: Client
) -> None:
    before = client.caption(PHOTO).text
    used = {process: sum(process.cpu_times()[:2]) for process in decoders()}
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(client.caption, SLOW + bytes(number)) for number in range(2)]
        assert_soon(lambda: all(sum(each.cpu_times()[:2]) > start + 0.3 for each, start in used.items()), seconds=60)
        waiting = pool.submit(client.caption, PHOTO.read_bytes() + bytes(100))
        for process in used:
            os.kill(process.pid, signal.SIGSEGV)
        for future in slow:
            with pytest.raises(errors.ImageBroken, match="the decoder crashed"):
                future.result()
        assert waiting.result().text == before


@pytest.mark.exhaustive
def test_a_file_that_takes_too_long_is_refused_and_captions_go_on(served: Served, client: Client) -> None:
    before = client.caption(PHOTO).text
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(direct, served, SLOW)
        for turn in itertools.count(200):
            assert client.caption(PHOTO.read_bytes() + bytes(turn)).text == before
            if slow.done():
                break
        with pytest.raises(errors.ImageTooSlow, match="20 s of processor time"):
            slow.result()


def test_direct_requests_beyond_the_queue_are_refused_and_captions_get_through(served: Served, client: Client) -> None:
    before = client.caption(PHOTO).text
    photo = file(NOISE.resize((2000, 1500)), "JPEG")
    stop, answers = threading.Event(), list[Any]()

    def flood() -> None:
        while not stop.wait(0.02):
            try:
                answers.append(direct(served, photo))
            except errors.CaptionerError as error:
                answers.append(error)

    with ThreadPoolExecutor(40) as pool:
        for _ in range(40):
            pool.submit(flood)
        try:
            assert_soon(lambda: any(isinstance(answer, errors.ServerBusy) for answer in answers), seconds=60)
            for turn in range(3):
                assert client.caption(PHOTO.read_bytes() + bytes(300 + turn)).text == before
        finally:
            stop.set()
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert {type(error) for error in refused} == {errors.ServerBusy}
    assert len(refused) < len(answers)
