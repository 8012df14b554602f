"""The decode engine: ids and features in, ids out, many captions in one step, each joining and leaving on its own.

One thread decodes and nothing else touches the device. Between two steps cancelled and expired requests leave, waiting
ones take their slots. The engine knows nothing of images, text or Triton.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from captioner.engine.beam_search import BeamSearch
from captioner.engine.repetition_guard import loops
from captioner.engine.runner import Runner, Step
from captioner.engine.scheduler import Scheduler
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import ServerStopping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """How busy the engine is."""

    running: int
    waiting: int
    slots: int
    tokens: int  # decoded since the start


class Engine:
    """Decodes with `runner` until closed. `stop_ids` end a caption and are not part of it."""

    def __init__(
        self,
        runner: Runner,
        stop_ids: tuple[int, ...],
        *,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._stop_ids = frozenset(stop_ids)
        self._scheduler: Scheduler[Sequence] = Scheduler(runner.slots, max_waiting)
        self._clock = clock
        self._changed = threading.Condition()
        self._closing = False
        self._tokens = 0
        self._launched: Step | None = None  # not read yet
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
        """An admitted request, its features set, waits for slots from now on; it takes no more than there are."""
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
        try:
            self._drop()
            self._join()
            self._advance()
        except Exception as error:  # a failed step fails its captions, never the engine
            self._launched = None
            log.exception("a decode step of %d captions failed", len(self._scheduler.running))
            for sequence in list(self._scheduler.running):
                sequence.error = error
                self._leave(sequence, "failed", keep_rows=False)

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
            if sequence is None:
                return
            sequence.started = self._clock()
            try:
                self._runner.join(sequence)
            except Exception as error:  # wrong features are this request's fault alone
                log.exception("a prefill failed")
                sequence.error = error
                self._leave(sequence, "failed")
            finally:
                sequence.features = None

    def _advance(self) -> None:
        """Launches the next step and reads the one before, or the same where nothing may be launched ahead."""
        ahead = self._runner.async_scheduling and all(sequence.beams is None for sequence in self._scheduler.running)
        if not ahead:
            self._read()  # the beams of a search are chosen here before they can go on
        before = self._launched
        running = self._scheduler.running
        self._launched = self._runner.launch(running) if running else None
        if ahead:
            self._read_step(before)
        else:
            self._read()

    def _read(self) -> None:
        step, self._launched = self._launched, None
        self._read_step(step)

    def _read_step(self, step: Step | None) -> None:
        if step is None:
            return
        tokens, logprobs = step.read()
        for sequence, rows in step.placed:
            if not sequence.rows:
                continue  # it left while this step ran
            if sequence.beams is None:
                self._take(sequence, tokens[rows[0]], logprobs[rows[0]])
            else:
                self._advance_beams(sequence, sequence.beams, step.logits_NV[rows])

    def _take(self, sequence: Sequence, token: int, logprob: float) -> None:
        sequence.logprob_sum += logprob
        sequence.num_sampled_tokens += 1
        if token in self._stop_ids:
            self._leave(sequence, "stop")
            return
        self._tokens += 1
        sequence.token_ids.append(token)
        sequence.on_token(token)
        if sequence.is_stop(sequence.token_ids):
            self._leave(sequence, "stop")
        elif sequence.repetition_guard and loops(sequence.token_ids):
            self._leave(sequence, "repetition")
        elif len(sequence.token_ids) >= sequence.max_tokens:
            self._leave(sequence, "length")

    def _advance_beams(self, sequence: Sequence, beams: BeamSearch, logits_KV: torch.Tensor) -> None:
        """A search's beams after this step, or its caption if it is over."""
        self._tokens += 1
        chosen = beams.advance(logits_KV)
        if chosen is not None:
            self._runner.reorder_beams(sequence.rows, *chosen)
            return
        sequence.logprob_sum, sequence.num_sampled_tokens = beams.logprob_sum, beams.num_sampled_tokens
        reason: FinishReason = "stop" if beams.stopped else "length"
        for token in beams.best:
            sequence.token_ids.append(token)
            sequence.on_token(token)
            if sequence.is_stop(sequence.token_ids):
                reason = "stop"
                break
        self._leave(sequence, reason)

    def _leave(self, sequence: Sequence, reason: FinishReason, *, keep_rows: bool = True) -> None:
        """Ends a caption. Without `keep_rows` nobody's rows are worth moving: all are leaving a broken step."""
        with self._changed:
            moves = self._scheduler.leave(sequence)
        try:
            if moves and keep_rows:
                self._runner.move([move.source for move in moves], [move.target for move in moves])
        finally:
            sequence.on_finish(reason)

    def _run(self) -> None:
        self._runner.bind()
        while True:
            with self._changed:
                while self._scheduler.idle and self._launched is None:
                    if self._closing and not self._scheduler.waiting:
                        return
                    self._changed.wait()
            self.step()
