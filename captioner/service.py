"""The entry's whole behaviour without Triton: a request is checked, admitted, encoded, decoded and answered once.

`model.py` gives it two things: `encode`, the hop to the image encoder, and a `Reply` for each request.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from captioner import metrics
from captioner.engine.beam import BeamSearch
from captioner.engine.engine import Engine
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import (
    ArtefactBroken,
    CaptionerError,
    DeadlineExceeded,
    ImageMissing,
    ParameterInvalid,
    PromptTooLong,
    RequestCancelled,
    ServerStopping,
    typed,
)
from captioner.families import family
from captioner.features import Encoded, FeatureCache
from captioner.manifest import Manifest
from captioner.sender import Outbox, Reply, Sender
from captioner.settings import Settings
from captioner.text import TextStream, stop_met
from captioner.wire import CaptionParameters, Details, Ending, ModelCard, Timings, parse_parameters, to_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionRequest:
    """One request as it came through the door; nothing in it is trusted."""

    image: bytes | None
    prompt: bytes | None
    parameters: Mapping[str, object]
    streaming: bool  # the door's default for the parameter `stream`


@dataclass(eq=False)
class Job:
    """One request on its way. Times are of time.monotonic(), in s."""

    outbox: Outbox
    sequence: Sequence
    prompt: str
    num_beams: int
    arrived: float
    encode_started: float = 0.0
    encode_ended: float = 0.0
    first_token: float = 0.0


class CaptionService:
    """Captions for one published model. `show` is told every metric's value several times a second."""

    def __init__(
        self,
        manifest: Manifest,
        version: str,
        device: str,
        precision: str,
        tokenizer: Tokenizer,
        engine: Engine,
        encode: Callable[[bytes], Encoded],
        show: Callable[[dict[str, float]], None],
        settings: Settings,
    ) -> None:
        self._manifest = manifest
        self._version = version
        self._device = device
        self._precision = precision
        self._family = family(manifest.family)
        self._tokenizer = tokenizer
        self._engine = engine
        self._encode = encode
        self._show = show
        self._features = FeatureCache(settings.feature_cache_mib * 2**20)
        tiles = manifest.image.most_tiles**2 + 1
        self._workers = ThreadPoolExecutor(max(1, settings.encode_workers // tiles), "encode")
        self._sender = Sender()
        self._counters = metrics.Counters()
        self._jobs: set[Job] = set()
        self._closed = threading.Event()
        self._poll_s = settings.cancel_poll_ms / 1000
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self._engine.start()
        self._poller.start()

    def handle(self, request: CaptionRequest, reply: Reply) -> None:
        """Answers through `reply`, exactly once, now or later; never raises."""
        outbox = self._sender.outbox(reply)
        try:
            parameters = parse_parameters(request.parameters)
            if parameters.describe:
                card = to_json(self.describe())
                return outbox.finish(lambda: card)
            if not request.image:
                raise ImageMissing("the request has no image")
            job = self._job(request, parameters, outbox)
            self._admit(job, request.image)
        except Exception as error:
            self._refuse(outbox, error)

    def describe(self) -> ModelCard:
        """What a client may ask for."""
        prompts = self._manifest.prompts
        return ModelCard(
            model=self._manifest.model,
            revision=self._manifest.revision,
            version=self._version,
            license=self._manifest.license,
            styles={style: list(lengths) for style, lengths in prompts.styles.items()},
            extras=list(prompts.extras),
            takes_name=prompts.takes_name,
            default_style=prompts.default_style,
            default_length=prompts.default_length,
            max_tokens=self._manifest.generation.max_tokens,
            device=self._device,
            precision=self._precision,
            prompts=prompts.styles,
        )

    def close(self) -> None:
        """Lets every admitted request end and be answered, then stops all threads."""
        self._engine.close()  # waits for the admitted, those on a worker among them
        self._workers.shutdown()
        self._sender.close()
        self._closed.set()
        self._poller.join()

    def _job(self, request: CaptionRequest, parameters: CaptionParameters, outbox: Outbox) -> Job:
        """Everything the request asks for, resolved; raises a child of ParameterRefused."""
        arrived = time.monotonic()
        manifest = self._manifest
        if request.prompt is None:
            prompt = manifest.prompts.render(parameters.style, parameters.length, parameters.extras, parameters.name)
        else:
            prompt = _utf8(request.prompt)
        # The most tiles an image may have: the room is settled before the image is looked at.
        tiles = manifest.image.most_tiles
        prompt_ids = self._family.prompt_ids(self._tokenizer, manifest, prompt, tiles, tiles)
        room = manifest.context_tokens - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(f"the prompt has {len(prompt_ids)} tokens; the limit is {manifest.context_tokens - 1}")
        if parameters.max_tokens is not None and parameters.max_tokens > room:
            raise ParameterInvalid(
                f"max_tokens is {parameters.max_tokens}; this model has room for {room} after the prompt"
            )
        max_tokens = parameters.max_tokens or min(manifest.generation.max_tokens, room)
        sampling = self._sampling(parameters)
        outbox.open(
            TextStream(self._tokenizer, prompt_ids if manifest.continues_prompt else [], parameters.stop),
            request.streaming if parameters.stream is None else parameters.stream,
        )
        sequence = Sequence(
            prompt_ids=prompt_ids,
            sampling=sampling,
            max_tokens=max_tokens,
            is_stop=lambda token_ids: stop_met(self._tokenizer, token_ids, parameters.stop),
            repetition_guard=parameters.repetition_guard,
            deadline=arrived + (parameters.deadline_ms or float("inf")) / 1000,
            priority_level=parameters.priority_level,
        )
        return Job(outbox, sequence, prompt, self._num_beams(parameters), arrived)

    def _sampling(self, parameters: CaptionParameters) -> Sampling:
        penalty = parameters.repetition_penalty
        return Sampling(
            temperature=parameters.temperature,
            top_p=parameters.top_p,
            top_k=parameters.top_k,
            repetition_penalty=self._manifest.generation.repetition_penalty if penalty is None else penalty,
            seed=secrets.randbits(32) if parameters.seed is None else parameters.seed,
        )

    def _num_beams(self, parameters: CaptionParameters) -> int:
        """As asked for, or the model's default where nothing is to be drawn."""
        beams, temperature, slots = parameters.num_beams, parameters.temperature, self._engine.load().slots
        if beams is None:
            return 1 if temperature else self._manifest.generation.num_beams
        if beams > 1 and temperature:
            raise ParameterInvalid(
                f"num_beams is {beams} and temperature {temperature:g}; beams take the likeliest text, so one of the "
                "two must go"
            )
        if beams > slots:
            raise ParameterInvalid(f"num_beams is {beams}; this server has {slots} slots")
        return beams

    def _admit(self, job: Job, image: bytes) -> None:
        self._engine.admit()
        self._jobs.add(job)
        try:
            self._workers.submit(self._feed, job, image)
        except RuntimeError:  # shut down between the two
            self._engine.withdraw()
            self._jobs.discard(job)
            raise ServerStopping("the server is stopping; retry on another replica") from None

    def _feed(self, job: Job, image: bytes) -> None:
        """The image's features, then a place in the engine's queue. Runs on a worker thread."""
        sequence = job.sequence
        try:
            self._check_wanted(sequence)
            job.encode_started = time.monotonic()
            encoded, hit = self._features.get(hashlib.sha256(image).digest(), lambda: self._encode(image))
            job.encode_ended = time.monotonic()
            self._check_wanted(sequence)
            self._ready(job, encoded)
        except BaseException as error:
            self._engine.withdraw()
            self._jobs.discard(job)
            self._refuse(job.outbox, error)
            return
        self._counters.add(metrics.CACHE_HITS, hit)
        sequence.on_token = lambda token_id: self._on_token(job, token_id)
        sequence.on_finish = lambda reason: self._on_finish(job, reason, encoded, hit)
        self._engine.submit(sequence)

    def _ready(self, job: Job, encoded: Encoded) -> None:
        """Gives the sequence what depends on the image; ArtefactBroken for features that are not the model's."""
        manifest, sequence, info = self._manifest, job.sequence, encoded.info
        tokens = manifest.feature_tokens * (info.tile_rows * info.tile_columns + 1)
        expected = (tokens, manifest.feature_width)
        if encoded.features.shape != expected:
            raise ArtefactBroken(f"the image encoder gave features {encoded.features.shape}; expected {expected}")
        sequence.features = torch.from_numpy(encoded.features)
        if not sequence.features.isfinite().all():  # one row of NaN would fail every caption drawn beside it
            raise ArtefactBroken("the image encoder gave features that are not finite numbers")
        if manifest.image.most_tiles:
            sequence.prompt_ids = self._family.prompt_ids(
                self._tokenizer, manifest, job.prompt, info.tile_rows, info.tile_columns
            )
        if job.num_beams > 1:
            generation = manifest.generation
            sequence.beams = BeamSearch(
                sequence.prompt_ids,
                width=job.num_beams,
                max_tokens=sequence.max_tokens,
                stop_ids=manifest.stop_ids,
                length_penalty=generation.length_penalty,
                early_stopping=generation.early_stopping,
                repetition_penalty=sequence.sampling.repetition_penalty,
            )

    def _check_wanted(self, sequence: Sequence) -> None:
        if sequence.cancelled:
            raise RequestCancelled("the client left")
        if time.monotonic() >= sequence.deadline:
            raise DeadlineExceeded("the deadline passed before the image was encoded")

    def _on_token(self, job: Job, token_id: int) -> None:
        if not job.first_token:
            job.first_token = time.monotonic()
            self._counters.add(metrics.TTFT, (job.first_token - job.arrived) * 1000)
        job.outbox.put(token_id)

    def _on_finish(self, job: Job, reason: FinishReason, encoded: Encoded, hit: bool) -> None:
        self._jobs.discard(job)
        if reason == "cancelled":
            self._refuse(job.outbox, RequestCancelled("the client left"))
        elif reason == "failed":
            self._refuse(job.outbox, job.sequence.error or CaptionerError("the decoder failed"))
        elif reason == "deadline" and not job.first_token:
            self._refuse(job.outbox, DeadlineExceeded("the deadline passed before the first token"))
        else:
            self._counters.add(metrics.CAPTIONS)
            details = self._details(job, reason, encoded, hit)
            job.outbox.finish(lambda: to_json(details))

    def _details(self, job: Job, reason: Ending, encoded: Encoded, hit: bool) -> Details:
        sequence, now = job.sequence, time.monotonic()
        encode_s = job.encode_ended - job.encode_started
        queue_s = job.encode_started - job.arrived + sequence.started - job.encode_ended
        mean_logprob = sequence.logprob_sum / max(sequence.picked, 1)
        calibration = self._manifest.calibration
        first_token = job.first_token or now  # a caption may end at its first token
        return Details(
            model=self._manifest.model,
            revision=self._manifest.revision,
            version=self._version,
            prompt=job.prompt,
            seed=sequence.sampling.seed,
            max_tokens=sequence.max_tokens,
            temperature=sequence.sampling.temperature,
            top_p=sequence.sampling.top_p,
            top_k=sequence.sampling.top_k,
            repetition_penalty=sequence.sampling.repetition_penalty,
            num_beams=job.num_beams,
            finish_reason=reason,
            tokens=len(sequence.token_ids),
            confidence=None if calibration is None else round(calibration.confidence(mean_logprob), 4),
            mean_logprob=round(mean_logprob, 4),
            image=encoded.info,
            timings_ms=Timings(
                *(round(s * 1000, 2) for s in (queue_s, encode_s, first_token - job.arrived, now - job.arrived))
            ),
            cache_hit=hit,
        )

    def _refuse(self, outbox: Outbox, error: BaseException) -> None:
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


def _utf8(prompt: bytes) -> str:
    try:
        return prompt.decode()
    except UnicodeDecodeError as error:
        raise ParameterInvalid(f"prompt is no UTF-8 text: byte {error.start} is {prompt[error.start]:#04x}") from None
