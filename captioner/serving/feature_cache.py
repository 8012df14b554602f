"""Image features by the sha256 of the image file: equal images are encoded once, also while they are in flight."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from captioner.wire import ImageInfo

MAX_IMAGES = 16_384  # each is a memory map, and Linux allows a process 65,530


@dataclass(frozen=True)
class Encoded:
    """The encoder's answer: features (image tokens, width) and facts about the image."""

    features: NDArray[np.float32]
    info: ImageInfo


class FeatureCache:
    """An LRU cache of at most `limit_bytes` of features. With 0 it only shares encodings that are in flight."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._cached: OrderedDict[bytes, Encoded] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._in_flight: dict[bytes, Future[Encoded]] = {}
        self._lock = threading.Lock()

    def cached(self, key: bytes) -> Encoded | None:
        """Return the features of `key` if they are in the cache. Never blocks."""
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
            return self._cached.get(key)

    def get(self, key: bytes, encode: Callable[[], Encoded]) -> tuple[Encoded, bool]:
        """Return the features of `key` and whether this was a cache hit. Blocks while any thread encodes them.

        The features are a copy of what `encode` returns.

        An exception of `encode` is raised in every thread that waits for it, and is not cached.
        """
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
                return self._cached[key], True
            pending = self._in_flight.get(key)
            if pending is None:
                future: Future[Encoded] = Future()
                self._in_flight[key] = future
        if pending is not None:
            return pending.result(), True
        try:
            encoded = encode()
            encoded = replace(encoded, features=_in_own_pages(encoded.features))
        except BaseException as error:
            with self._lock:
                del self._in_flight[key]
            future.set_exception(error)
            del future, encode  # the traceback refers to this frame: a reference cycle would keep the image
            raise
        with self._lock:
            del self._in_flight[key]
            self._add(key, encoded)
        future.set_result(encoded)
        return encoded, False

    def _add(self, key: bytes, encoded: Encoded) -> None:
        size = encoded.features.nbytes
        if size > self._limit_bytes:
            return
        self._cached[key] = encoded
        self._bytes += size
        while self._bytes > self._limit_bytes or len(self._cached) > MAX_IMAGES:
            self._bytes -= self._cached.popitem(last=False)[1].features.nbytes


def _in_own_pages(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy features into memory that goes back to the system when they are dropped.

    On the heap they lie among objects with shorter lives, and the holes that they leave are filled too rarely: a server
    with a full cache grew by 1 % a minute.
    """
    pages = mmap.mmap(-1, max(features.nbytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    copy = np.frombuffer(pages, features.dtype, features.size).reshape(features.shape)
    np.copyto(copy, features)
    return copy
