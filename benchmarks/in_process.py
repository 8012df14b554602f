"""This project's engine in the benchmark's process, with the same closed loop as the baselines.

The engine decodes in its own thread. A client without think time sends its next request from `on_finish`, so nothing
but the engine runs between two captions of a client.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque

import torch

from benchmarks.measurement import Round
from benchmarks.published import Published
from benchmarks.workload import Request, Workload
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import FinishReason, Sequence
from captioner.families import family

MAX_WAITING = 1024


def runner(published: Published, slots: int, work: Workload) -> Runner:
    """Return a runner of the published decoder, warmed up as in the server."""
    manifest = published.manifest()
    decoder = family(manifest.family).decoder(published.version, manifest, "fp32", torch.device("cpu"))
    made = Runner(decoder, slots)
    made.warm_up(work.features[0], work.prompt_ids)
    return made


def think_time_s(request: Request, max_s: float) -> float:
    """Return how long a client waits before it sends `request`; the same for every compared system."""
    return random.Random(request.number).uniform(0, max_s)


class ClosedLoop:
    """`concurrency` clients. Each sends its next request once its caption is complete and its think time is over."""

    def __init__(self, engine: Engine, work: Workload, concurrency: int, max_think_s: float) -> None:
        self.result = Round()
        self._engine = engine
        self._work = work
        self._concurrency = concurrency
        self._max_think_s = max_think_s
        self._to_send = deque(work.requests)
        self._done = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> Round:
        """Run the whole workload; raise the error of the first request that fails."""
        began = time.perf_counter()
        for _ in range(min(self._concurrency, len(self._to_send))):
            self._send_next()
        self._done.wait()
        if self._failure is not None:
            raise self._failure
        self.result.seconds = time.perf_counter() - began
        return self.result

    def _send_next(self) -> None:
        if not self._to_send:
            return
        request = self._to_send.popleft()
        if self._max_think_s:
            threading.Timer(think_time_s(request, self._max_think_s), self._send, [request]).start()
        else:
            self._send(request)

    def _send(self, request: Request) -> None:
        sent = time.perf_counter()
        times: list[float] = []
        sequence = Sequence(
            self._work.prompt_ids,
            Sampling(),
            request.tokens,
            on_token=lambda _: times.append(time.perf_counter()),
            on_finish=lambda reason: self._on_finish(request, sequence, reason, sent, times),
            features=self._work.features_of(request),
        )
        self._engine.admit(sequence)
        self._engine.submit(sequence)

    def _on_finish(
        self, request: Request, sequence: Sequence, reason: FinishReason, sent: float, times: list[float]
    ) -> None:
        if reason != "length":
            self._failure = sequence.error or RuntimeError(f"a caption ended by {reason}")
            self._done.set()
            return
        self.result.add(request.number, sequence.token_ids, sent, times[0], times[-1])
        if len(self.result.captions) == len(self._work.requests):
            self._done.set()
        self._send_next()


def run(made: Runner, work: Workload, concurrency: int, max_think_s: float = 0.0) -> Round:
    """Run the workload with `concurrency` clients through a new engine that has no stop tokens."""
    engine = Engine(made, (), max_waiting=MAX_WAITING)
    engine.start()
    try:
        return ClosedLoop(engine, work, concurrency, max_think_s).run()
    finally:
        engine.close()
