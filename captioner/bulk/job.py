"""The job: images in, captions kept, every failure named, and an end that leaves nothing half done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from captioner.bulk.engines.base import BulkEngine
from captioner.bulk.outputs.base import CaptionedImage, Output
from captioner.bulk.progress import Progress
from captioner.bulk.sources.discover import FoundImage, Sources, reason
from captioner.bulk.sources.item import Item
from captioner.errors import CaptionerError, ImageMissing, OutputRefused, ParameterRefused, typed

_WAITING = 256  # captions that wait to be written
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Job:
    """One run over `sources`. The first Ctrl-C lets what runs finish and takes nothing new, the second ends at once."""

    def __init__(
        self,
        sources: Sources,
        engine: BulkEngine,
        output: Output,
        progress: Progress,
        *,
        report: Path | None = None,
        give_up_s: float,
        again: str = "",
    ) -> None:
        """`report` gets a JSON line a failure. After `give_up_s` seconds of nothing but an absent server the job ends.

        `again` says how a stopped job is taken up.
        """
        self._sources, self._engine, self._output, self._progress = sources, engine, output, progress
        self._give_up_s, self._again = give_up_s, again
        self._report, self._reporting = _opened(report), threading.Lock()
        self._under_way: dict[str, FoundImage] = {}
        self._stopping = threading.Event()
        self._signalled = False
        self._fatal: Exception | None = None
        self._last_caption = time.monotonic()

    async def run(self) -> int:
        """0 when all went well, 1 when some images failed, 2 when nothing could be done, 130 after Ctrl-C."""
        captions: asyncio.Queue[CaptionedImage | None] = asyncio.Queue(_WAITING)
        finished = False
        try:
            with tempfile.TemporaryDirectory(prefix="captioner-") as spool, self._signals():
                writing = asyncio.create_task(self._write(captions))
                self._progress.count(self._sources.find())
                try:
                    async for outcome in self._engine(self._items(Path(spool))):
                        found = self._under_way.pop(outcome.item.key)
                        if outcome.caption is not None:
                            self._last_caption = time.monotonic()
                            await captions.put(CaptionedImage(found, outcome.caption))
                        else:
                            self._fail(found, outcome.error or CaptionerError("no caption and no reason"))
                    for found in list(self._under_way.values()):
                        self._fail(found, CaptionerError("the engine gave no answer"))
                finally:
                    await captions.put(None)
                    await writing
            finished = not self._stopping.is_set()
        finally:
            try:
                self._output.close(finished, self._progress.failed > 0)
            except OSError as error:
                self._stop(OutputRefused(f"the end cannot be written: {reason(error)}"))
            self._progress.close()
            if self._report is not None:
                self._report.close()
        return self._code(finished)

    def _code(self, finished: bool) -> int:
        progress = self._progress
        through = progress.captioned + progress.skipped
        if finished and not through + progress.failed:
            raise ImageMissing("no images there: " + ", ".join(self._sources.places))
        if self._fatal is not None:
            progress.say(f"given up: {typed(self._fatal).wire()}")
        progress.say(f"{progress.captioned} captioned, {progress.skipped} there already, {progress.failed} failed")
        if self._again and (progress.failed or not finished):
            progress.say(self._again)
        if self._signalled:
            return 130
        if self._fatal is None and not progress.failed:
            return 0
        return 1 if through else 2

    def _items(self, spool: Path) -> Iterator[Item]:
        for found in self._sources.find(spool):
            if self._stopping.is_set():
                return
            try:
                if found.error is not None:
                    raise found.error
                wanted = self._output.wants(found)
            except (CaptionerError, OSError) as error:
                self._fail(found, typed(error))
                continue
            if wanted:
                self._under_way[found.item.key] = found
                yield found.item
            else:
                self._progress.add(skipped=1)
                _discard(found)

    async def _write(self, captions: asyncio.Queue[CaptionedImage | None]) -> None:
        """Whatever waits is written together: one journal entry and one flush for all of it."""
        ended = broken = False
        while not ended:
            batch = [await captions.get()]
            while not captions.empty():
                batch.append(captions.get_nowait())
            ended = None in batch
            captioned = [each for each in batch if each is not None]
            if not broken and captioned:
                try:
                    failed = await asyncio.to_thread(self._output.write, captioned)
                except OSError as error:  # the disk is full: what comes is taken, and dropped, until the engine ends
                    broken = True
                    self._stop(OutputRefused(f"nothing more can be written: {reason(error)}"))
                    continue
                self._progress.add(captioned=len(captioned) - len(failed))
                for found, why in failed:
                    self._fail(found, why)
            for found, _ in captioned:
                _discard(found)

    def _fail(self, found: FoundImage, error: CaptionerError) -> None:
        self._progress.say(f"{found.label}: {error.wire()}")
        if self._report is not None:
            line = {"file": found.item.key, "code": error.code, "message": str(error)}
            with self._reporting:
                self._report.write(json.dumps(line) + "\n")
                self._report.flush()
        self._progress.add(failed=1)
        _discard(found)
        absent = error.status == "UNAVAILABLE" and time.monotonic() - self._last_caption >= self._give_up_s
        if absent or isinstance(error, ParameterRefused):  # the next image would fare no better
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        self._fatal = self._fatal or error
        self._stopping.set()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        ours = threading.current_thread() is threading.main_thread()

        def on_signal() -> None:
            if self._signalled:
                os._exit(130)
            self._signalled = True
            self._stopping.set()
            self._progress.say("stopping: what runs is finished; once more ends at once")

        for number in SIGNALS if ours else ():
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in SIGNALS if ours else ():
                loop.remove_signal_handler(number)


def _discard(found: FoundImage) -> None:
    if found.copied:
        found.item.path.unlink(missing_ok=True)


def _opened(report: Path | None) -> TextIO | None:
    try:
        return None if report is None else report.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputRefused(f"{report} cannot be written: {reason(error)}") from None
