"""The decode engine: ids and features in, ids out, many captions in one step, each joining and leaving on its own.

One thread decodes and nothing else touches the decoder. Between two steps cancelled and expired requests leave,
waiting ones take their slots. The engine knows nothing of images, text or Triton.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from captioner.engine.sampling import pick
from captioner.engine.scheduler import Scheduler
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import ServerStopping
from captioner.families.base import Decoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """How busy the engine is."""

    running: int
    waiting: int
    slots: int
    tokens: int  # decoded since the start


class Engine:
    """Decodes with `decoder` until closed. `stop_ids` end a caption and are not part of it."""

    def __init__(
        self,
        decoder: Decoder,
        stop_ids: tuple[int, ...],
        *,
        slots: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decoder = decoder
        self._stop_ids = frozenset(stop_ids)
        self._scheduler: Scheduler[Sequence] = Scheduler(slots, max_waiting)
        self._clock = clock
        self._changed = threading.Condition()
        self._closing = False
        self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        """Starts the decode thread; without it, `step` may be called by hand."""
        self._thread.start()

    def admit(self) -> None:
        """Takes a place for a request before its image is encoded; ServerBusy or ServerStopping when there is none.

        Every admitted request ends in either `submit` or `withdraw`.
        """
        with self._changed:
            if self._closing:
                raise ServerStopping("the server is stopping; retry on another replica")
            self._scheduler.admit()

    def withdraw(self) -> None:
        """Gives an admitted request's place back."""
        with self._changed:
            self._scheduler.withdraw()
            self._changed.notify_all()

    def submit(self, sequence: Sequence) -> None:
        """An admitted request, its features set, waits for a slot from now on."""
        with self._changed:
            self._scheduler.enqueue(sequence)
            self._changed.notify_all()

    def load(self) -> Load:
        """Counts of this moment."""
        with self._changed:
            return Load(len(self._scheduler.running), self._scheduler.waiting, self._scheduler.slots, self._tokens)

    def close(self) -> None:
        """Refuses new requests, decodes the admitted ones to their end, and returns."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> None:
        """One round: who must leave leaves, who waits joins, every running caption gets one token."""
        running = self._scheduler.running
        try:
            self._drop()
            self._join()
            if running:
                self._decode(list(running))
        except Exception as error:  # a failed step fails its captions, never the engine
            log.exception("a decode step of %d captions failed", len(running))
            for sequence in reversed(list(running)):  # the last first: no row need be moved by a broken decoder
                sequence.error = error
                self._leave(sequence, "failed")

    def _decode(self, running: list[Sequence]) -> None:
        logits = self._decoder.decode(
            [sequence.token_ids[-1] for sequence in running], [sequence.length for sequence in running]
        )
        for sequence, token in zip(running, pick(logits, running), strict=True):
            self._take(sequence, token)

    def _drop(self) -> None:
        now = self._clock()
        with self._changed:
            gone = self._scheduler.dropped(now)
        for sequence in gone:
            sequence.on_finish("cancelled" if sequence.cancelled else "deadline")
        for sequence in list(self._scheduler.running):
            if sequence.cancelled:
                self._leave(sequence, "cancelled")
            elif now >= sequence.deadline:
                self._leave(sequence, "deadline")

    def _join(self) -> None:
        while True:
            with self._changed:
                sequence = self._scheduler.join()
                row = len(self._scheduler.running) - 1
            if sequence is None:
                return
            sequence.started = self._clock()
            try:
                if sequence.features is None:
                    raise ValueError("submitted without features")
                logits = self._decoder.prefill(row, sequence.features, sequence.prompt_ids)
                token = pick(logits[None], [sequence])[0]
            except Exception as error:  # wrong features are this request's fault alone
                log.exception("a prefill failed")
                sequence.error = error
                self._leave(sequence, "failed")
                continue
            finally:
                sequence.features = None
            self._take(sequence, token)

    def _take(self, sequence: Sequence, token: int) -> None:
        if token in self._stop_ids:
            self._leave(sequence, "stop")
            return
        self._tokens += 1
        sequence.token_ids.append(token)
        sequence.on_token(token)
        if len(sequence.token_ids) >= sequence.max_tokens:
            self._leave(sequence, "length")

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        with self._changed:
            move = self._scheduler.leave(sequence)
        try:
            if move is not None:
                moved = self._scheduler.running[move.target]
                # One position more: this step may have written it before its token was taken.
                self._decoder.move(move.source, move.target, moved.length + 1)
        finally:
            sequence.on_finish(reason)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._scheduler.idle:
                    if self._closing and not self._scheduler.waiting:
                        return
                    self._changed.wait()
            self.step()
