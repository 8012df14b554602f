"""A bulk job: caption every image of the sources, write the captions, log each failure, stop cleanly on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from captioner.bulk.engines.base import BulkEngine, Outcome
from captioner.bulk.order import InputOrder
from captioner.bulk.outputs.atomic_write import DISK_FAILURES
from captioner.bulk.outputs.base import CaptionedImage, Output
from captioner.bulk.progress import Progress
from captioner.bulk.prompt_template import PromptTemplate
from captioner.bulk.report import Report
from captioner.bulk.sources.discover import FoundImage, Sources
from captioner.bulk.sources.item import Item, reason
from captioner.client.retry import is_transient
from captioner.errors import CaptionerError, DeadlineExceeded, ImageMissing, OutputRefused, ParameterRefused, typed

_MAX_UNWRITTEN = 256  # captions in the queue between the engine and the output
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Job:
    """One run over `sources`.

    The first Ctrl-C starts no new image and waits for those in flight. The second one ends the process immediately.
    """

    def __init__(
        self,
        sources: Sources,
        engine: BulkEngine,
        output: Output,
        progress: Progress,
        *,
        report: Report | None = None,
        give_up_s: float,
        in_order: bool = False,
        can_resume: bool = False,
        prompt: PromptTemplate | None = None,
    ) -> None:
        """`in_order`: write the captions in the order of the images. `can_resume`: a second run continues the job.

        `prompt`: each image fills its fields; the engine's parameters then have no prompt.
        The job ends when for `give_up_s` seconds the server was unavailable for every image.
        """
        self._sources, self._engine, self._output, self._progress = sources, engine, output, progress
        self._give_up_s, self._can_resume, self._prompt = give_up_s, can_resume, prompt
        self._report, self._order = report or Report(), InputOrder[CaptionedImage]() if in_order else None
        self._numbers = itertools.count()
        self._in_flight: dict[str, tuple[int, FoundImage]] = {}  # with its number in the input
        self._stopping = threading.Event()
        self._signalled = False
        self._fatal: Exception | None = None
        self._last_caption = time.monotonic()

    async def run(self) -> int:
        """Run the job and return the exit code.

        0: everything succeeded; 1: some images failed; 2: nothing could be done; 130: stopped by Ctrl-C.
        Raises ImageMissing if the sources hold no image.
        """
        captions: asyncio.Queue[CaptionedImage | None] = asyncio.Queue(_MAX_UNWRITTEN)
        finished = False
        try:
            with tempfile.TemporaryDirectory(prefix="captioner-") as spool, self._signals():
                writing = asyncio.create_task(self._write(captions))
                self._progress.count(self._sources.find())
                try:
                    async for outcome in self._engine(self._items(Path(spool))):
                        number, image = self._in_flight.pop(outcome.item.key)
                        for each in self._in_turn(number, self._accepted(image, outcome)):
                            await captions.put(each)
                    for _, image in list(self._in_flight.values()):
                        self._fail(image, CaptionerError("the engine returned no outcome"))
                finally:
                    for each in self._order.rest() if self._order else ():
                        await captions.put(each)
                    await captions.put(None)
                    await writing
            finished = not self._stopping.is_set()
        finally:
            try:
                self._output.close(finished, self._progress.failed > 0)
            except OSError as error:
                self._stop(OutputRefused(f"the output cannot be completed: {reason(error)}"))
            self._progress.close()
            self._report.close()
        return self._exit_code(finished)

    def _exit_code(self, finished: bool) -> int:
        progress = self._progress
        succeeded = progress.captioned + progress.skipped
        if finished and not succeeded + progress.failed:
            nothing = "no images found in " + ", ".join(self._sources.locations)
            raise ImageMissing("; ".join([nothing, *self._report.missing()]))
        if self._fatal is not None:
            progress.log(f"given up: {typed(self._fatal).wire()}")
        progress.log(self._report.summary(progress))
        if self._can_resume and not finished:
            progress.log("run the same command again to resume")
        elif self._can_resume and progress.failed:
            progress.log("run the same command again to retry the failed images")
        if self._signalled:
            return 130
        if self._fatal is None and not progress.failed:
            return 0
        return 1 if succeeded else 2

    def _items(self, spool: Path) -> Iterator[Item]:
        for image in self._sources.find(spool, self._report.passed_over):
            if self._stopping.is_set():
                return
            try:
                if image.error is not None:
                    raise image.error
                wanted = self._output.wants(image)
                if wanted and self._prompt is not None:
                    image = replace(image, item=replace(image.item, prompt=self._prompt.fill(image)))  # noqa: PLW2901
            except Exception as error:  # one image must not end the others
                self._fail(image, typed(error))
                if isinstance(error, OSError) and error.errno in DISK_FAILURES:
                    self._stop(OutputRefused(f"nothing more can be written: {reason(error)}"))
                continue
            if wanted:
                self._in_flight[image.item.key] = next(self._numbers), image
                yield image.item
            else:
                self._progress.add(skipped=1)
                _discard(image)

    async def _write(self, captions: asyncio.Queue[CaptionedImage | None]) -> None:
        """Write the queued captions in batches, so that they share one journal entry and one flush."""
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
                except Exception as error:  # such as a full disk: drain the queue unwritten until the engine stops
                    broken = True
                    self._stop(OutputRefused(f"nothing more can be written: {reason(error)}"))
                    continue
                self._progress.add(captioned=len(captioned) - len(failed))
                for image, failure in failed:
                    self._fail(image, failure)
            for image, _ in captioned:
                _discard(image)

    def _accepted(self, image: FoundImage, outcome: Outcome) -> CaptionedImage | None:
        """Return the captioned image, or None for a failure. A caption that the deadline cut is one."""
        caption, error = outcome.caption, outcome.error or CaptionerError("no caption and no error")
        if caption is not None:
            self._last_caption = time.monotonic()
            if caption.details.finish_reason == "deadline":
                cut = f"the deadline cut the caption after {caption.details.tokens} tokens; it was not written"
                caption, error = None, DeadlineExceeded(cut)
        if caption is None:
            self._fail(image, error)
            return None
        self._report.cut += caption.details.finish_reason == "length"
        if shrunk_from := caption.details.image.shrunk_from:
            self._progress.log(f"{image.label}: shrunk from {shrunk_from} before it was captioned")
        return CaptionedImage(image, caption)

    def _in_turn(self, number: int, captioned: CaptionedImage | None) -> list[CaptionedImage]:
        """Return the captions that are written now, given the one that has just come."""
        if self._order is None:
            return [] if captioned is None else [captioned]
        if captioned is not None:
            _discard(captioned.image)  # it may wait long, and what is written in order does not read the image
        return self._order.add(number, captioned)

    def _fail(self, image: FoundImage, error: CaptionerError) -> None:
        self._progress.log(f"{image.label}: {error.wire()}")
        self._report.failure(image.item, error)
        self._progress.add(failed=1)
        _discard(image)
        unavailable = is_transient(error) and time.monotonic() - self._last_caption >= self._give_up_s
        # A parameter concerns all images; an output that is refused, or a prompt of its own, concerns this one.
        wrong = isinstance(error, ParameterRefused) and not isinstance(error, OutputRefused)
        wrong = wrong and image.item.prompt is None
        if unavailable or wrong:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        self._fatal = self._fatal or error
        self._stopping.set()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        in_main_thread = threading.current_thread() is threading.main_thread()

        def on_signal() -> None:
            if self._signalled:
                os._exit(130)
            self._signalled = True
            self._stopping.set()
            self._progress.log("stopping: waiting for the images in flight; press Ctrl-C again to stop immediately")

        for number in SIGNALS if in_main_thread else ():
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in SIGNALS if in_main_thread else ():
                loop.remove_signal_handler(number)


def _discard(image: FoundImage) -> None:
    if image.temporary:
        image.item.path.unlink(missing_ok=True)
