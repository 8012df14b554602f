"""Image features by the image's own bytes: equal images are encoded once, also while they are in flight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captioner.wire import ImageInfo


@dataclass(frozen=True)
class Encoded:
    """What the encoder answered: features (image tokens, width) and what the image was."""

    features: NDArray[np.float32]
    info: ImageInfo


class FeatureCache:
    """At most `limit_bytes` of features, the longest unused leaving first; 0 keeps nothing but what is in flight."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[bytes, Encoded] = OrderedDict()
        self._bytes = 0
        self._in_flight: dict[bytes, Future[Encoded]] = {}
        self._lock = threading.Lock()

    def get(self, key: bytes, encode: Callable[[], Encoded]) -> tuple[Encoded, bool]:
        """The features under `key` and whether they were known. Blocks while they are made, here or elsewhere.

        What `encode` raises is raised for everyone who waited for it, and is not kept.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], True
            waited_for = self._in_flight.get(key)
            if waited_for is None:
                future: Future[Encoded] = Future()
                self._in_flight[key] = future
        if waited_for is not None:
            return waited_for.result(), True
        try:
            encoded = encode()
        except BaseException as error:
            with self._lock:
                del self._in_flight[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._in_flight[key]
            self._keep(key, encoded)
        future.set_result(encoded)
        return encoded, False

    def _keep(self, key: bytes, encoded: Encoded) -> None:
        size = encoded.features.nbytes
        if size > self._limit_bytes:
            return
        self._kept[key] = encoded
        self._bytes += size
        while self._bytes > self._limit_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].features.nbytes
