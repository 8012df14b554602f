"""The entry's whole behaviour without Triton: a request is checked, admitted, encoded, decoded and answered once.

`model.py` gives it two things: `encode`, the hop to the image encoder, and a `Reply` for each request.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from captioner.engine.engine import Engine
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import (
    CaptionerError,
    DeadlineExceeded,
    ImageMissing,
    RequestCancelled,
    ServerStopping,
    typed,
)
from captioner.serving import metrics
from captioner.serving.feature_cache import Encoded, FeatureCache
from captioner.serving.response_sender import ResponseQueue, ResponseSender, ResponseWriter
from captioner.serving.served_model import CaptionRequest, InFlightRequest, ServedModel
from captioner.serving.settings import Settings
from captioner.wire import parse_parameters, to_json

log = logging.getLogger(__name__)


class CaptionService:
    """Captions for one published model. `show` is told every metric's value several times a second."""

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        encode: Callable[[bytes], Encoded],
        show: Callable[[dict[str, float]], None],
        settings: Settings,
    ) -> None:
        self._model = model
        self._engine = engine
        self._encode = encode
        self._show = show
        self._features = FeatureCache(settings.feature_cache_mib * 2**20)
        tiles = model.manifest.image.most_tiles**2 + 1
        self._workers = ThreadPoolExecutor(max(1, settings.encode_workers // tiles), "encode")
        self._sender = ResponseSender()
        self._counters = metrics.Counters()
        self._jobs: set[InFlightRequest] = set()
        self._closed = threading.Event()
        self._poll_s = settings.cancel_poll_ms / 1000
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self._engine.start()
        self._poller.start()

    def handle(self, request: CaptionRequest, reply: ResponseWriter) -> None:
        """Answers through `reply`, exactly once, now or later; never raises."""
        outbox = self._sender.outbox(reply)
        try:
            parameters = parse_parameters(request.parameters)
            if parameters.describe:
                card = to_json(self._model.card())
                return outbox.finish(lambda: card)
            if not request.image:
                raise ImageMissing("the request has no image")
            job = self._model.job(request, parameters, outbox)
            self._admit(job, request.image)
        except Exception as error:
            self._refuse(outbox, error)

    def close(self) -> None:
        """Lets every admitted request end and be answered, then stops all threads."""
        self._engine.close()  # waits for the admitted, those on a worker among them
        self._workers.shutdown()
        self._sender.close()
        self._closed.set()
        self._poller.join()

    def _admit(self, job: InFlightRequest, image: bytes) -> None:
        self._engine.admit()
        self._jobs.add(job)
        try:
            self._workers.submit(self._feed, job, image)
        except RuntimeError:  # shut down between the two
            self._engine.withdraw()
            self._jobs.discard(job)
            raise ServerStopping("the server is stopping; retry on another replica") from None

    def _feed(self, job: InFlightRequest, image: bytes) -> None:
        """The image's features, then a place in the engine's queue. Runs on a worker thread."""
        sequence = job.sequence
        try:
            self._check_wanted(sequence)
            job.encode_started = time.monotonic()
            encoded, hit = self._features.get(hashlib.sha256(image).digest(), lambda: self._encode(image))
            job.encode_ended = time.monotonic()
            self._check_wanted(sequence)
            self._model.set_features(job, encoded)
        except BaseException as error:
            self._engine.withdraw()
            self._jobs.discard(job)
            self._refuse(job.outbox, error)
            return
        self._counters.add(metrics.CACHE_HITS, hit)
        sequence.on_token = lambda token_id: self._on_token(job, token_id)
        sequence.on_finish = lambda reason: self._on_finish(job, reason, encoded, hit)
        self._engine.submit(sequence)

    def _check_wanted(self, sequence: Sequence) -> None:
        if sequence.cancelled:
            raise RequestCancelled("the client left")
        if time.monotonic() >= sequence.deadline:
            raise DeadlineExceeded("the deadline passed before the image was encoded")

    def _on_token(self, job: InFlightRequest, token_id: int) -> None:
        if not job.first_token:
            job.first_token = time.monotonic()
            self._counters.add(metrics.TTFT, (job.first_token - job.arrived) * 1000)
        job.outbox.put(token_id)

    def _on_finish(self, job: InFlightRequest, reason: FinishReason, encoded: Encoded, hit: bool) -> None:
        self._jobs.discard(job)
        if reason == "cancelled":
            self._refuse(job.outbox, RequestCancelled("the client left"))
        elif reason == "failed":
            self._refuse(job.outbox, job.sequence.error or CaptionerError("the decoder failed"))
        elif reason == "deadline" and not job.first_token:
            self._refuse(job.outbox, DeadlineExceeded("the deadline passed before the first token"))
        else:
            self._counters.add(metrics.CAPTIONS)
            details = self._model.details(job, reason, encoded, hit)
            job.outbox.finish(lambda: to_json(details))

    def _refuse(self, outbox: ResponseQueue, error: BaseException) -> None:
        if isinstance(error, RequestCancelled):
            self._counters.add(metrics.CANCELLED)
        else:
            self._counters.add(metrics.REFUSED)
        if not isinstance(error, CaptionerError):
            log.error("a request failed", exc_info=error)
        outbox.fail(typed(error))

    def _poll(self) -> None:
        """Asks for cancels in turn and shows the metrics; both are round trips, so neither is the decoder's work."""
        while not self._closed.wait(self._poll_s):
            try:
                for job in list(self._jobs):
                    if not job.sequence.cancelled and job.outbox.is_cancelled():
                        job.sequence.cancelled = True
                self._show(self._counters.values(self._engine.load()))
            except Exception:  # a request that ends while it is asked about must not end the asking
                log.exception("polling failed")
