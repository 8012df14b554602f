"""How far a job is, on stderr: a bar where somebody looks, and lines either way."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any


class Progress:
    """Counts captioned, skipped and failed images, from any thread; the bar's total comes when it is known."""

    def __init__(self, shown: bool) -> None:
        self.captioned = self.skipped = self.failed = 0
        self._lock = threading.Lock()
        self._total: int | None = None
        self._bar: Any = None
        self._closed = False
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(unit="image", dynamic_ncols=True, file=sys.stderr, smoothing=0.05)

    def count(self, images: Iterable[object]) -> None:
        """Counts the images in a thread of its own, where there is a bar to need it."""
        if self._bar is not None:
            threading.Thread(target=self._count, args=(images,), name="count", daemon=True).start()

    def add(self, *, captioned: int = 0, skipped: int = 0, failed: int = 0) -> None:
        """More that are through. What is skipped is taken off the total: it would flatter the rate."""
        with self._lock:
            self.captioned += captioned
            self.skipped += skipped
            self.failed += failed
            if self._bar is not None and not self._closed:
                if self._total is not None:
                    self._bar.total = max(self._total - self.skipped, self.captioned + self.failed)
                if skipped or failed:
                    self._bar.set_postfix(skipped=self.skipped, failed=self.failed, refresh=False)
                self._bar.update(captioned + failed)

    def say(self, line: str) -> None:
        """A line on stderr, above the bar."""
        with self._lock:
            if self._bar is not None and not self._closed:
                self._bar.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """The bar stays as it is."""
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.close()

    def _count(self, images: Iterable[object]) -> None:
        total = 0
        for _ in images:
            total += 1
            if self._closed:
                return
        with self._lock:
            self._total = total
        self.add()
