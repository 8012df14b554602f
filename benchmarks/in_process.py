"""This project's engine in this process, under the same closed loop as the baselines.

The engine decodes in a thread of its own and, where clients do not think, `submit` is called from `on_finish`: between
two captions of a client nothing waits but the engine.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque

import torch

from benchmarks.cells import Round
from benchmarks.published import Published
from benchmarks.workload import Request, Workload
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import FinishReason, Sequence
from captioner.families import family

MOST_WAITING = 1024


def runner(published: Published, slots: int, work: Workload) -> Runner:
    """The published decoder with its slots, warmed up as the server does it."""
    manifest = published.manifest()
    decoder = family(manifest.family).decoder(published.version, manifest, "fp32", torch.device("cpu"))
    made = Runner(decoder, slots)
    made.warm_up(work.features[0], work.prompt_ids)
    return made


def thinking_s(request: Request, longest_s: float) -> float:
    """How long a client thinks before it sends `request`: the same on every side of a comparison."""
    return random.Random(request.number).uniform(0, longest_s)


class ClosedLoop:
    """`concurrency` clients, each sending its next request when it has the caption of its last and has thought."""

    def __init__(self, engine: Engine, work: Workload, concurrency: int, think_s: float) -> None:
        self.result = Round()
        self._engine = engine
        self._work = work
        self._concurrency = concurrency
        self._think_s = think_s
        self._to_send = deque(work.requests)
        self._done = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> Round:
        """Everything, to the last caption; raises what failed."""
        began = time.perf_counter()
        for _ in range(min(self._concurrency, len(self._to_send))):
            self._next()
        self._done.wait()
        if self._failure is not None:
            raise self._failure
        self.result.seconds = time.perf_counter() - began
        return self.result

    def _next(self) -> None:
        if not self._to_send:
            return
        request = self._to_send.popleft()
        if self._think_s:
            threading.Timer(thinking_s(request, self._think_s), self._send, [request]).start()
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
            on_finish=lambda reason: self._finished(request, sequence, reason, sent, times),
            features=self._work.features_of(request),
        )
        self._engine.admit()
        self._engine.submit(sequence)

    def _finished(
        self, request: Request, sequence: Sequence, reason: FinishReason, sent: float, times: list[float]
    ) -> None:
        if reason != "length":
            self._failure = sequence.error or RuntimeError(f"a caption ended by {reason}")
            self._done.set()
            return
        self.result.add(request.number, sequence.token_ids, sent, times[0], times[-1])
        if len(self.result.captions) == len(self._work.requests):
            self._done.set()
        self._next()


def run(made: Runner, work: Workload, concurrency: int, think_s: float = 0.0) -> Round:
    """All of `work` by `concurrency` clients through an engine of its own, which knows no end tokens."""
    engine = Engine(made, (), max_waiting=MOST_WAITING)
    engine.start()
    try:
        return ClosedLoop(engine, work, concurrency, think_s).run()
    finally:
        engine.close()
