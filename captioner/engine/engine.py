"""The decode engine: ids and features in, ids out; many captions share each step and join or leave on their own.

One thread decodes, and only that thread uses the device. Between two steps, cancelled and expired requests leave and
waiting requests get their slots. It knows no images, no text and no Triton.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from captioner.engine.beam_search import BeamSearch
from captioner.engine.repetition_guard import is_repeating
from captioner.engine.runner import Runner, Step
from captioner.engine.scheduler import Scheduler
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import ServerStopping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLoad:
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
        self._launched: Step | None = None  # not yet read
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        """Start the decode thread. Without it, the caller may call `step`."""
        self._thread.start()

    def admit(self) -> None:
        """Admit a request before its image is encoded. Raises ServerBusy or ServerStopping.

        Every admitted request must end in either `submit` or `withdraw`.
        """
        with self._changed:
            if self._closing:
                raise ServerStopping("the server is stopping; retry on another replica")
            self._scheduler.admit()

    def withdraw(self) -> None:
        """Give up an admitted request before `submit`."""
        with self._changed:
            self._scheduler.withdraw()
            self._changed.notify_all()

    def submit(self, sequence: Sequence) -> None:
        """Queue an admitted request with its features. Its width is at most the number of slots."""
        with self._changed:
            self._scheduler.enqueue(sequence)
            self._changed.notify_all()

    def load(self) -> EngineLoad:
        """Return the current load."""
        with self._changed:
            scheduler = self._scheduler
            return EngineLoad(len(scheduler.running), scheduler.waiting, scheduler.slots, self._tokens)

    def close(self) -> None:
        """Refuse new requests, decode the admitted ones to their end, then return."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> None:
        """Do one round: remove cancelled and expired requests, start waiting ones, decode one token of each."""
        try:
            self._drop_expired()
            self._join()
            self._advance()
        except Exception as error:  # a failed step fails its captions, not the engine
            self._launched = None
            log.exception("a decode step of %d captions failed", len(self._scheduler.running))
            for sequence in list(self._scheduler.running):
                sequence.error = error
                self._leave(sequence, "failed", keep_rows=False)

    def _drop_expired(self) -> None:
        now = self._clock()
        with self._changed:
            dropped = self._scheduler.drop_expired(now)
        for sequence in dropped:
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
            except Exception as error:  # wrong features must fail only this request
                log.exception("a prefill failed")
                sequence.error = error
                self._leave(sequence, "failed")
            finally:
                sequence.features = None

    def _advance(self) -> None:
        """Launch a step and read its tokens; with async scheduling, read the tokens of the previous step instead."""
        running = self._scheduler.running
        # A beam search chooses its beams on the host, so its next step must wait for them.
        is_async = self._runner.async_scheduling and all(sequence.beams is None for sequence in running)
        if not is_async:
            self._read_launched()
        previous = self._launched
        self._launched = self._runner.launch(running) if running else None
        if is_async:
            self._read(previous)
        else:
            self._read_launched()

    def _read_launched(self) -> None:
        step, self._launched = self._launched, None
        self._read(step)

    def _read(self, step: Step | None) -> None:
        if step is None:
            return
        tokens, logprobs = step.read()
        for sequence, rows in step.rows_of:
            if not sequence.rows:
                continue  # it left while this step ran
            if sequence.beams is None:
                self._append(sequence, tokens[rows[0]], logprobs[rows[0]])
            else:
                self._advance_beams(sequence, sequence.beams, step.logits_NV[rows])

    def _append(self, sequence: Sequence, token: int, logprob: float) -> None:
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
        elif sequence.repetition_guard and is_repeating(sequence.token_ids):
            self._leave(sequence, "repetition")
        elif len(sequence.token_ids) >= sequence.max_tokens:
            self._leave(sequence, "length")

    def _advance_beams(self, sequence: Sequence, beams: BeamSearch, logits_KV: torch.Tensor) -> None:
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
        """End a caption. After a failed step, no rows need to move (`keep_rows` False): all captions leave."""
        with self._changed:
            sources, targets = self._scheduler.leave(sequence)
        try:
            if sources and keep_rows:
                self._runner.move(sources, targets)
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
