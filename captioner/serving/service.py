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
from dataclasses import replace

from captioner.engine.engine import Engine
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import (
    CaptionerError,
    DeadlineExceeded,
    EncoderStalled,
    ImageMissing,
    RequestCancelled,
    traced,
    typed,
)
from captioner.image.formats import check_wrapped_size
from captioner.serving import metrics
from captioner.serving.encode_pool import EncodePool
from captioner.serving.feature_cache import Encoded, FeatureCache
from captioner.serving.request import CaptionRequest, InFlightRequest
from captioner.serving.response_sender import ResponseQueue, ResponseSender, ResponseWriter
from captioner.serving.served_model import ServedModel
from captioner.serving.settings import Settings
from captioner.wire import parse_parameters, to_json

log = logging.getLogger(__name__)
PREPARE_THREADS = 2


class CaptionService:
    """Captions for one published model. `report` gets the value of every metric several times a second."""

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        encode: Callable[[bytes], Encoded],
        report: Callable[[metrics.Values], None],
        settings: Settings,
    ) -> None:
        self._model = model
        self._engine = engine
        self._encode = encode
        self._report = report
        self._features = FeatureCache(settings.feature_cache_mib * 2**20)
        image = model.manifest.image
        self._encoders = EncodePool(
            max(1, settings.encode_workers // image.parts(*image.max_grid)),
            self._next_to_encode,
            self._encode_and_submit,
        )
        self._encode_timeout_s = settings.encode_timeout_s
        self._preparers = ThreadPoolExecutor(PREPARE_THREADS, "prepare")
        self._sender = ResponseSender()
        self._counters = metrics.Counters()
        self._in_flight: dict[Sequence, InFlightRequest] = {}
        self._closed = threading.Event()
        self._poll_s = settings.cancel_poll_ms / 1000
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self._engine.start()
        self._poller.start()

    def handle(self, request: CaptionRequest, writer: ResponseWriter) -> None:
        """Answer through `writer` exactly once, now or later. Never raises, and never takes long."""
        queue = self._sender.queue(writer)
        try:
            parameters = parse_parameters(request.parameters)
            if parameters.describe:
                card = to_json(self._model.card())
                return queue.finish(lambda: card)
            if not request.image:
                raise ImageMissing("the request has no image")
            check_wrapped_size(len(request.image))
            self._admit(self._model.accept(request, parameters, queue))
        except Exception as error:
            self._refuse(queue, error)

    def close(self) -> None:
        """Answer every admitted request, then stop all threads."""
        self._engine.close()  # also waits for requests that are being prepared or encoded
        self._preparers.shutdown()
        self._sender.close()
        self._closed.set()
        self._poller.join()

    def _admit(self, request: InFlightRequest) -> None:
        sequence = request.sequence
        sequence.on_token = lambda token_id: self._on_token(request, token_id)
        sequence.on_finish = lambda reason: self._on_finish(request, reason)
        self._in_flight[sequence] = request
        try:
            self._engine.admit(sequence)
        except CaptionerError:
            del self._in_flight[sequence]
            sequence.release()
            raise
        self._preparers.submit(self._prepare, request)

    def _prepare(self, request: InFlightRequest) -> None:
        """Tokenize the prompt, then queue the request for an encoder, or for the engine if its features are cached."""
        try:
            self._model.prepare(request)
            request.image_key = hashlib.sha256(request.image).digest()
            cached = self._features.cached(request.image_key)
            if cached is not None:
                request.encode_started = request.encode_ended = time.monotonic()
                self._submit(request, cached, hit=True)
                return
        except BaseException as error:
            self._give_up(request, error)
            return
        self._engine.enqueue_encode(request.sequence)
        self._encoders.dispatch()

    def _next_to_encode(self) -> InFlightRequest | None:
        while (sequence := self._engine.next_to_encode()) is not None:
            if request := self._in_flight.get(sequence):  # None: it was dropped at this moment
                return request
        return None

    def _encode_and_submit(self, request: InFlightRequest) -> None:
        """Get the image's features, then queue the request in the engine."""
        image = request.image
        try:
            request.encode_started = time.monotonic()
            encoded, hit = self._features.get(request.image_key, lambda: self._encode(image))
            request.encode_ended = time.monotonic()
            self._submit(request, encoded, hit)
        except BaseException as error:
            self._give_up(request, error)

    def _submit(self, request: InFlightRequest, encoded: Encoded, hit: bool) -> None:
        self._counters.add(metrics.CACHE_HITS if hit else metrics.IMAGES_ENCODED)
        self._model.set_features(request, encoded, hit)
        self._engine.submit(request.sequence)

    def _give_up(self, request: InFlightRequest, error: BaseException) -> None:
        """Refuse a request that failed before the engine had it, unless it has been answered meanwhile."""
        if self._engine.withdraw(request.sequence):
            self._in_flight.pop(request.sequence, None)
            self._refuse(request.queue, error)

    def _on_token(self, request: InFlightRequest, token_id: int) -> None:
        if not request.first_token:
            request.first_token = time.monotonic()
            self._counters.add(metrics.TTFT, (request.first_token - request.arrived) * 1000)
        request.queue.put(token_id)

    def _on_finish(self, request: InFlightRequest, reason: FinishReason) -> None:
        self._in_flight.pop(request.sequence, None)
        if reason == "cancelled":
            self._refuse(request.queue, RequestCancelled("the client cancelled the request"))
        elif reason == "failed":
            self._refuse(request.queue, request.sequence.error or CaptionerError("the decoder failed"))
        elif reason == "deadline" and not request.first_token:
            self._refuse(
                request.queue,
                DeadlineExceeded(f"the deadline of {request.parameters.deadline_ms} ms passed before the first token"),
            )
        else:
            self._counters.add(metrics.CAPTIONS)
            details = self._model.details(request, reason)
            # Asked when the text is complete: it may end before the last token.
            request.queue.finish(
                lambda: to_json(replace(details, finish_reason=request.queue.text_ended_by or details.finish_reason))
            )

    def _refuse(self, queue: ResponseQueue, error: BaseException) -> None:
        refusal = typed(error)
        if isinstance(error, RequestCancelled):
            self._counters.add(metrics.CANCELLED)
        else:
            self._counters.add(metrics.REFUSED, code=refusal.code)
        if not isinstance(error, CaptionerError):
            log.error("a request failed: %s", traced(error))
        queue.fail(refusal)

    def _poll(self) -> None:
        """Poll each request for cancellation and report the metrics: round trips, so not on the decode thread."""
        while not self._closed.wait(self._poll_s):
            try:
                self._poll_cancellations()
                self._engine.drop_expired()
                self._give_up_stalled()
                self._report(self._counters.values(self._engine.load()))
            except Exception:  # the next poll must come
                log.exception("polling failed")

    def _poll_cancellations(self) -> None:
        for request in list(self._in_flight.values()):
            try:
                if not request.sequence.cancelled and request.queue.is_cancelled():
                    request.sequence.cancelled = True
            except Exception:  # a request that ends while it is polled must not hide the others
                log.exception("a request could not be polled")

    def _give_up_stalled(self) -> None:
        for request in self._encoders.abandon(self._encode_timeout_s):
            timeout = f"the image encoder gave no answer within {self._encode_timeout_s} s"
            self._give_up(request, EncoderStalled(f"{timeout}; retry on another replica"))
