"""The progress of a job on stderr: an optional bar, and log lines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any


class Progress:
    """Counts of captioned, skipped and failed images, with a bar if `shown`. Thread-safe."""

    def __init__(self, shown: bool) -> None:
        self.captioned = self.skipped = self.failed = 0
        self._lock = threading.Lock()
        self._total: int | None = None  # known when `count` has finished
        self._bar: Any = None
        self._closed = False
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(unit="image", dynamic_ncols=True, file=sys.stderr, smoothing=0.05)

    def count(self, images: Iterable[object]) -> None:
        """Count the images in a separate thread, for the bar's total. Without a bar, do nothing."""
        if self._bar is not None:
            threading.Thread(target=self._count, args=(images,), name="count", daemon=True).start()

    def add(self, *, captioned: int = 0, skipped: int = 0, failed: int = 0) -> None:
        """Record finished images. Skipped images are subtracted from the total, because they would inflate the rate."""
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

    def log(self, line: str) -> None:
        """Print a line on stderr, above the bar."""
        with self._lock:
            if self._bar is not None and not self._closed:
                self._bar.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop updating the bar and leave it on the screen."""
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
