"""The feature cache: equal images are encoded once, within a limit of bytes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from captioner.errors import ImageBroken
from captioner.serving.feature_cache import Encoded, FeatureCache
from captioner.wire import ImageInfo

INFO = ImageInfo("PNG", 8, 8, 1, rotated=False, alpha=False)
BYTES = 1024  # of one image's features


class Encoder:
    """Counts its calls; a test can block it or make it fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def __call__(self) -> Encoded:
        self.calls += 1
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return Encoded(np.full((16, 16), self.calls, dtype=np.float32), INFO)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def ask_concurrently(cache: FeatureCache, encoder: Encoder, count: int) -> list[tuple[Encoded, bool] | ImageBroken]:
    """Return what each of `count` threads gets that request one image while it is being encoded."""

    def ask() -> tuple[Encoded, bool] | ImageBroken:
        try:
            return cache.get(b"key", encoder)
        except ImageBroken as error:
            return error

    encoder.go.clear()
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(ask) for _ in range(count)]
        time.sleep(0.1)
        encoder.go.set()
        return [future.result(10) for future in futures]


def test_twenty_requests_for_one_image_encode_it_once(encoder: Encoder) -> None:
    answers = ask_concurrently(FeatureCache(100 * BYTES), encoder, 20)
    assert encoder.calls == 1
    hits = [answer[1] for answer in answers if not isinstance(answer, ImageBroken)]
    assert sorted(hits) == [False] + [True] * 19


def test_a_cache_of_zero_bytes_still_shares_encodings_in_flight(encoder: Encoder) -> None:
    answers = ask_concurrently(FeatureCache(0), encoder, 20)
    assert encoder.calls < 20
    assert len({id(answer[0]) for answer in answers if not isinstance(answer, ImageBroken)}) == encoder.calls


def test_a_failure_is_raised_in_every_waiting_thread_and_is_not_cached(encoder: Encoder) -> None:
    cache = FeatureCache(100 * BYTES)
    encoder.error = ImageBroken("the file ends too early")
    assert all(isinstance(answer, ImageBroken) for answer in ask_concurrently(cache, encoder, 20))
    encoder.error, calls = None, encoder.calls
    assert cache.get(b"key", encoder)[1] is False
    assert encoder.calls == calls + 1


def test_an_image_in_flight_does_not_block_another_image(encoder: Encoder) -> None:
    cache, other = FeatureCache(100 * BYTES), Encoder()
    encoder.go.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get, b"slow", encoder)
        assert cache.get(b"other", other)[1] is False
        assert not slow.done()
        encoder.go.set()


def test_the_least_recently_used_entry_is_evicted_first(encoder: Encoder) -> None:
    cache = FeatureCache(3 * BYTES)
    for key in (b"a", b"b", b"c", b"a", b"d"):  # b is now the least recently used, and d does not fit
        cache.get(key, encoder)
    assert encoder.calls == 4
    assert [cache.get(key, encoder)[1] for key in (b"a", b"c", b"d")] == [True, True, True]
    assert cache.get(b"b", encoder)[1] is False


def test_the_limit_counts_bytes_not_images(encoder: Encoder) -> None:
    cache = FeatureCache(3 * BYTES)
    cache.get(b"a", encoder)
    large = Encoded(np.zeros((40, 16), dtype=np.float32), INFO)
    cache.get(b"large", lambda: large)
    assert cache.get(b"a", encoder)[1] is False, "2.5 KiB and 1 KiB are more than 3"


def test_features_larger_than_the_whole_cache_evict_nothing(encoder: Encoder) -> None:
    cache = FeatureCache(BYTES)
    cache.get(b"a", encoder)
    cache.get(b"large", lambda: Encoded(np.zeros((17, 16), dtype=np.float32), INFO))
    assert cache.get(b"a", encoder)[1] is True


def test_a_limit_of_zero_caches_nothing(encoder: Encoder) -> None:
    cache = FeatureCache(0)
    assert [cache.get(b"a", encoder)[1] for _ in range(3)] == [False] * 3
    assert encoder.calls == 3
