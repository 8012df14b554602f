"""The decode engine: ids and features in, ids out; many captions share each step and join or leave on their own.

One thread decodes, and only that thread uses the device. Between two steps, cancelled and expired requests leave and
a few waiting requests get their slots. It knows no images, no text and no Triton.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from captioner.engine.beam_search import BeamSearch
from captioner.engine.consensus import Candidates
from captioner.engine.repetition_guard import is_repeating
from captioner.engine.runner import Runner, Step
from captioner.engine.scheduler import Scheduler
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import CaptionerError, ServerBusy, ServerStopping

log = logging.getLogger(__name__)
MAX_PREFILLS = 2  # between two steps: running captions wait for them
_EXIT_CODE = 70  # of a process whose decode thread cannot go on


def _exit() -> None:
    """End the process at once: Triton and the supervisor then see that this model is dead."""
    os._exit(_EXIT_CODE)


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
        on_death: Callable[[], None] = _exit,
    ) -> None:
        """`on_death` is called when the device is lost or the decode thread fails: no later caption can succeed."""
        self._runner = runner
        self._stop_ids = frozenset(stop_ids)
        self._scheduler: Scheduler[Sequence] = Scheduler(runner.slots, max_waiting)
        self._clock = clock
        self._on_death = on_death
        self._changed = threading.Condition()
        self._closing = False
        self._tokens = 0
        self._launched: Step | None = None  # not yet read
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        """Start the decode thread. Without it, the caller may call `step`."""
        self._thread.start()

    def admit(self, sequence: Sequence) -> None:
        """Admit a request before any work is done for it. Raises ServerBusy or ServerStopping.

        Every admitted request must end in either `submit` or `withdraw`, unless its `on_finish` was called before.
        """
        with self._changed:
            if self._closing:
                raise ServerStopping("the server is stopping; retry on another replica")
            evicted = self._scheduler.admit(sequence)
        if evicted is not None:
            evicted.error = ServerBusy(
                "the queue is full, and a client with fewer requests came first; retry in 1000 ms"
            )
            self._finish(evicted, "failed")

    def withdraw(self, sequence: Sequence) -> bool:
        """Give up an admitted request before `submit`; return False if it had already ended."""
        with self._changed:
            withdrawn = self._scheduler.withdraw(sequence)
            self._changed.notify_all()
        if withdrawn:
            sequence.release()
        return withdrawn

    def enqueue_encode(self, sequence: Sequence) -> None:
        """Queue an admitted request for `next_to_encode`."""
        with self._changed:
            self._scheduler.enqueue_encode(sequence)

    def next_to_encode(self) -> Sequence | None:
        """Return the next request whose image is to be encoded, or None."""
        with self._changed:
            return self._scheduler.next_to_encode()

    def submit(self, sequence: Sequence) -> None:
        """Queue an admitted request with its features. Its width is at most the number of slots."""
        if sequence.features is not None:
            sequence.features = self._runner.stage(sequence.features)
        with self._changed:
            self._scheduler.enqueue(sequence)
            self._changed.notify_all()

    def drop_expired(self) -> None:
        """End the requests not yet running that were cancelled or are past their deadline. Any thread may call it."""
        with self._changed:
            dropped = self._scheduler.drop_expired(self._clock())
            self._changed.notify_all()
        for sequence in dropped:
            self._finish(sequence, "cancelled" if sequence.cancelled else "deadline")

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
            self._drop_running()
            self._join()
            self._advance()
        except Exception as error:  # a failed step fails its captions, not the engine
            self._launched = None
            log.exception("a decode step of %d captions failed", len(self._scheduler.running))
            for sequence in list(self._scheduler.running):
                sequence.error = error.with_traceback(None)
                self._leave(sequence, "failed", keep_rows=False)
            self._die_with_device(error)

    def _drop_running(self) -> None:
        now = self._clock()
        for sequence in list(self._scheduler.running):
            if sequence.cancelled:
                self._leave(sequence, "cancelled")
            elif now >= sequence.deadline:
                self._leave(sequence, "deadline")

    def _join(self) -> None:
        """Prefill a few waiting requests. More of them would keep the running captions, and each other, waiting."""
        for _ in range(MAX_PREFILLS):
            self.drop_expired()
            if not self._scheduler.can_join:
                return
            self._read_launched()  # its tokens must not wait for a prefill
            with self._changed:
                sequence = self._scheduler.join()
            if sequence is None:
                return
            sequence.started = self._clock()
            try:
                self._runner.join(sequence)
            except Exception as error:  # wrong features must fail only this request
                log.exception("a prefill failed")
                sequence.error = error.with_traceback(None)
                self._leave(sequence, "failed")
                self._die_with_device(error)
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
            if sequence.beams is not None:
                self._advance_beams(sequence, sequence.beams, step.logits_NV[rows])
            elif sequence.candidates is not None:
                drawn = [tokens[row] for row in rows], [logprobs[row] for row in rows]
                self._append_candidates(sequence, sequence.candidates, *drawn)
            else:
                self._append(sequence, tokens[rows[0]], logprobs[rows[0]])

    def _append(self, sequence: Sequence, token: int, logprob: float) -> None:
        if math.isnan(logprob):
            self._fail_nan(sequence)
            return
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
        if logits_KV.isnan().any():
            self._fail_nan(sequence)
            return
        self._tokens += 1
        chosen = beams.advance(logits_KV)
        if chosen is not None:
            self._runner.reorder_beams(sequence.rows, *chosen)
            return
        self._finish_search(sequence, beams)

    def _append_candidates(
        self, sequence: Sequence, candidates: Candidates, tokens: list[int], logprobs: list[float]
    ) -> None:
        if any(map(math.isnan, logprobs)):
            self._fail_nan(sequence)
            return
        self._tokens += 1
        if candidates.append(tokens, logprobs):
            self._finish_search(sequence, candidates)

    def _finish_search(self, sequence: Sequence, search: BeamSearch | Candidates) -> None:
        """End a caption that was chosen among several: its text comes whole."""
        sequence.logprob_sum, sequence.num_sampled_tokens = search.logprob_sum, search.num_sampled_tokens
        reason: FinishReason = "stop" if search.stopped else "length"
        for token in search.best:
            sequence.token_ids.append(token)
            sequence.on_token(token)
            if sequence.is_stop(sequence.token_ids):
                reason = "stop"
                break
        self._leave(sequence, reason)

    def _fail_nan(self, sequence: Sequence) -> None:
        sequence.error = CaptionerError("the decoder computed logits that are not numbers (NaN) for this image")
        self._leave(sequence, "failed")

    def _leave(self, sequence: Sequence, reason: FinishReason, *, keep_rows: bool = True) -> None:
        """End a caption. After a failed step, no rows need to move (`keep_rows` False): all captions leave."""
        with self._changed:
            sources, targets = self._scheduler.leave(sequence)
        try:
            if sources and keep_rows:
                self._runner.move(sources, targets)
        finally:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        try:
            sequence.on_finish(reason)
        except Exception:  # one request's end must not end the decode thread
            log.exception("the end of a request could not be handled")
        finally:
            sequence.release()

    def _die_with_device(self, error: BaseException) -> None:
        """After a CUDA error other than a full memory, every later call fails: end the process."""
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            log.critical("the device is lost: %s", error)
            self._on_death()

    def _run(self) -> None:
        try:
            self._runner.bind()
            self._decode_until_closed()
        except BaseException:
            log.critical("the decode thread failed", exc_info=True)
            self._on_death()

    def _decode_until_closed(self) -> None:
        while True:
            with self._changed:
                while self._scheduler.idle and self._launched is None:
                    if self._closing and not self._scheduler.waiting:
                        return
                    self._changed.wait()
            self.step()
