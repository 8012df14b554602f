"""The captioner model's whole behaviour without Triton: check, admit, encode, decode and answer a request exactly once.

`model.py` gives it two things: `encode`, the call to the image encoder, and a `ResponseWriter` for each request.
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
    traced,
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
    """Captions for one published model. `report` gets the value of every metric several times a second."""

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        encode: Callable[[bytes], Encoded],
        report: Callable[[dict[str, float]], None],
        settings: Settings,
    ) -> None:
        self._model = model
        self._engine = engine
        self._encode = encode
        self._report = report
        self._features = FeatureCache(settings.feature_cache_mib * 2**20)
        tiles = model.manifest.image.max_tiles**2 + 1
        self._workers = ThreadPoolExecutor(max(1, settings.encode_workers // tiles), "encode")
        self._sender = ResponseSender()
        self._counters = metrics.Counters()
        self._in_flight: set[InFlightRequest] = set()
        self._closed = threading.Event()
        self._poll_s = settings.cancel_poll_ms / 1000
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self._engine.start()
        self._poller.start()

    def handle(self, request: CaptionRequest, writer: ResponseWriter) -> None:
        """Answer through `writer` exactly once, now or later. Never raises."""
        queue = self._sender.queue(writer)
        try:
            parameters = parse_parameters(request.parameters)
            if parameters.describe:
                card = to_json(self._model.card())
                return queue.finish(lambda: card)
            if not request.image:
                raise ImageMissing("the request has no image")
            self._admit(self._model.prepare(request, parameters, queue), request.image)
        except Exception as error:
            self._refuse(queue, error)

    def close(self) -> None:
        """Answer every admitted request, then stop all threads."""
        self._engine.close()  # also waits for requests that a worker is encoding
        self._workers.shutdown()
        self._sender.close()
        self._closed.set()
        self._poller.join()

    def _admit(self, request: InFlightRequest, image: bytes) -> None:
        self._engine.admit()
        self._in_flight.add(request)
        try:
            self._workers.submit(self._encode_and_submit, request, image)
        except RuntimeError:  # the pool was shut down after the engine admitted the request
            self._engine.withdraw()
            self._in_flight.discard(request)
            raise ServerStopping("the server is stopping; retry on another replica") from None

    def _encode_and_submit(self, request: InFlightRequest, image: bytes) -> None:
        """Get the image's features, then queue the request in the engine. Runs on a worker thread."""
        sequence = request.sequence
        try:
            self._check_alive(sequence)
            request.encode_started = time.monotonic()
            encoded, hit = self._features.get(hashlib.sha256(image).digest(), lambda: self._encode(image))
            request.encode_ended = time.monotonic()
            self._check_alive(sequence)
            self._model.set_features(request, encoded)
        except BaseException as error:
            self._engine.withdraw()
            self._in_flight.discard(request)
            self._refuse(request.queue, error)
            return
        self._counters.add(metrics.CACHE_HITS, hit)
        sequence.on_token = lambda token_id: self._on_token(request, token_id)
        sequence.on_finish = lambda reason: self._on_finish(request, reason, encoded, hit)
        self._engine.submit(sequence)

    def _check_alive(self, sequence: Sequence) -> None:
        if sequence.cancelled:
            raise RequestCancelled("the client cancelled the request")
        if time.monotonic() >= sequence.deadline:
            raise DeadlineExceeded("the deadline passed before the image was encoded")

    def _on_token(self, request: InFlightRequest, token_id: int) -> None:
        if not request.first_token:
            request.first_token = time.monotonic()
            self._counters.add(metrics.TTFT, (request.first_token - request.arrived) * 1000)
        request.queue.put(token_id)

    def _on_finish(self, request: InFlightRequest, reason: FinishReason, encoded: Encoded, hit: bool) -> None:
        self._in_flight.discard(request)
        if reason == "cancelled":
            self._refuse(request.queue, RequestCancelled("the client cancelled the request"))
        elif reason == "failed":
            self._refuse(request.queue, request.sequence.error or CaptionerError("the decoder failed"))
        elif reason == "deadline" and not request.first_token:
            self._refuse(request.queue, DeadlineExceeded("the deadline passed before the first token"))
        else:
            self._counters.add(metrics.CAPTIONS)
            details = self._model.details(request, reason, encoded, hit)
            request.queue.finish(lambda: to_json(details))

    def _refuse(self, queue: ResponseQueue, error: BaseException) -> None:
        if isinstance(error, RequestCancelled):
            self._counters.add(metrics.CANCELLED)
        else:
            self._counters.add(metrics.REFUSED)
        if not isinstance(error, CaptionerError):
            log.error("a request failed: %s", traced(error))
        queue.fail(typed(error))

    def _poll(self) -> None:
        """Poll each request for cancellation and report the metrics: round trips, so not on the decode thread."""
        while not self._closed.wait(self._poll_s):
            try:
                for request in list(self._in_flight):
                    if not request.sequence.cancelled and request.queue.is_cancelled():
                        request.sequence.cancelled = True
                self._report(self._counters.values(self._engine.load()))
            except Exception:  # a request that ends while it is polled must not end the polling
                log.exception("polling failed")
