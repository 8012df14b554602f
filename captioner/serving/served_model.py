"""The published model as a request meets it: resolve what is asked for, and describe how the caption was made.

It knows the manifest and the tokenizer, not threads, slots or responses: those are the service's.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from tokenizers import Tokenizer

from captioner.artifacts.languages import language_name
from captioner.artifacts.manifest import Manifest
from captioner.engine.beam_search import BeamSearch
from captioner.engine.consensus import Candidates
from captioner.engine.sequence import Sequence
from captioner.errors import ArtefactBroken, ParameterInvalid, PromptTooLong
from captioner.families import family
from captioner.families.regions import BOX
from captioner.serving.decoding_options import resolve_decoding
from captioner.serving.detokenizer import Detokenizer
from captioner.serving.feature_cache import Encoded
from captioner.serving.prompt_text import ControlTokens, resolve_prompt
from captioner.serving.request import CaptionRequest, InFlightRequest
from captioner.serving.response_sender import ResponseQueue
from captioner.wire import (
    CaptionParameters,
    Details,
    FinishReason,
    ImageInfo,
    ModelCard,
    Region,
    Timings,
    decode_prompt,
)


class ServedModel:
    """One published version on one device, decoded in `slots` slots."""

    def __init__(
        self, manifest: Manifest, version: str, device: str, precision: str, tokenizer: Tokenizer, slots: int
    ) -> None:
        self.manifest = manifest
        self._version = version
        self._device = device
        self._precision = precision
        self._tokenizer = tokenizer
        self._slots = slots
        self._family = family(manifest.family)
        self._locations = self._family.locations(tokenizer)
        self._control_tokens = ControlTokens(tokenizer, manifest.prompts)
        if manifest.prompts.language:
            language_name("en")  # load the names: no request waits for that

    def card(self) -> ModelCard:
        """Return what a client may ask for."""
        prompts = self.manifest.prompts
        return ModelCard(
            model=self.manifest.model,
            revision=self.manifest.revision,
            version=self._version,
            license=self.manifest.card.license,
            base_model=self.manifest.card.base_model,
            intended_use=self.manifest.card.intended_use,
            styles={style: list(lengths) for style, lengths in prompts.styles.items()},
            extras=prompts.extras,
            takes_name=prompts.takes_name,
            default_style=prompts.default_style,
            default_length=prompts.default_length,
            max_tokens=self.manifest.generation.max_tokens,
            device=self._device,
            precision=self._precision,
            encoder_precision=self.manifest.precision,
            follows_instructions=self._family.follows_instructions and not self.manifest.continues_prompt,
            takes_system=bool(self.manifest.system_template),
            takes_language=bool(prompts.language),
            language_prompt=prompts.language,
            prompts=prompts.styles,
        )

    def accept(self, request: CaptionRequest, parameters: CaptionParameters, queue: ResponseQueue) -> InFlightRequest:
        """Resolve everything that takes no time. Raises a subclass of ParameterRefused."""
        arrived = time.monotonic()
        prompt = resolve_prompt(self.manifest, parameters, decode_prompt(request.prompt or b""))
        decoding = resolve_decoding(parameters, self.manifest.generation, self._slots)
        sequence = Sequence(
            prompt_ids=[],
            sampling=decoding.sampling,
            max_tokens=0,
            repetition_guard=parameters.repetition_guard,
            deadline=arrived + (parameters.deadline_ms or float("inf")) / 1000,
            priority_level=parameters.priority_level,
            client_id=parameters.client_id,
        )
        return InFlightRequest(
            queue=queue,
            sequence=sequence,
            parameters=parameters,
            image=request.image or b"",
            prompt=prompt,
            decoding=decoding,
            streaming=request.streaming if parameters.stream is None else parameters.stream,
            arrived=arrived,
        )

    def prepare(self, request: InFlightRequest) -> None:
        """Tokenize the prompt and open the response queue. Raises a subclass of ParameterRefused."""
        manifest, parameters, sequence = self.manifest, request.parameters, request.sequence
        for text in request.prompt.own_texts:
            self._control_tokens.check(text)
        # Assume the largest grid an image may have: the prompt must fit before the image is decoded.
        grid = manifest.image.max_grid
        prompt_ids = self._prompt_ids(request, *grid)
        room = manifest.context_tokens - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(f"the prompt has {len(prompt_ids)} tokens; the limit is {manifest.context_tokens - 1}")
        max_tokens = parameters.max_tokens
        if max_tokens is not None and max_tokens > room and not parameters.fit_max_tokens:
            raise ParameterInvalid(f"max_tokens is {max_tokens}; this model has room for {room} after the prompt")
        sequence.prompt_ids = prompt_ids
        if self._family.encodes_prompt:
            sequence.encoded_ids = len(prompt_ids) - len(manifest.start_ids)
        sequence.max_tokens = min(max_tokens or manifest.generation.max_tokens, room)
        echoed_prompt_ids = prompt_ids if manifest.continues_prompt else []
        # A list of labels may name two things with the same words.
        guards_text = parameters.repetition_guard and self._style(request) not in self._family.region_styles
        text_rules = (
            self._locations or self._tokenizer, echoed_prompt_ids, parameters.stop, parameters.max_characters,
            sequence.max_tokens, guards_text,
        )  # fmt: skip
        request.queue.open(Detokenizer(*text_rules), request.streaming)
        if parameters.stop or parameters.max_characters is not None:
            request.text_limits = Detokenizer(*text_rules)  # the queue's runs behind, on the sender's thread
            sequence.is_stop = request.text_limits.is_stop

    def _prompt_ids(self, request: InFlightRequest, grid_rows: int, grid_columns: int) -> list[int]:
        prompt = request.prompt
        return self._family.prompt_ids(
            self._tokenizer, self.manifest, prompt.text, grid_rows, grid_columns, prompt.system
        )

    def _style(self, request: InFlightRequest) -> str:
        """Return the style that the request's prompt belongs to; "" for a prompt of the client's own."""
        return self.manifest.prompts.style_of(request.prompt.text) or ""

    def _regions(self, request: InFlightRequest, info: ImageInfo) -> tuple[Region, ...] | None:
        """Return the places that a finished caption names; None if the model cannot name places."""
        if self._locations is None:
            return None
        per_region = self._family.region_styles.get(self._style(request), BOX)
        return self._locations.regions(request.sequence.token_ids, info.width, info.height, per_region)

    def set_features(self, request: InFlightRequest, encoded: Encoded, hit: bool) -> None:
        """Give the sequence what depends on the image; `hit` means that the features came from the cache.

        Raises ArtefactBroken for features of another shape or NaN.
        """
        manifest, sequence, info = self.manifest, request.sequence, encoded.info
        request.info, request.cache_hit, request.image = info, hit, b""
        shape = manifest.feature_shape(info.grid_rows, info.grid_columns)
        expected = (math.prod(shape[:-1]), shape[-1])
        if encoded.features.shape != expected:
            raise ArtefactBroken(f"the image encoder gave features {encoded.features.shape}; expected {expected}")
        sequence.features = torch.from_numpy(encoded.features).reshape(shape)
        # One row of NaN would fail every caption of the same step. Not by torch: see `load_service`.
        if not np.isfinite(encoded.features).all():
            raise ArtefactBroken("the image encoder gave features that are not finite numbers")
        if any(manifest.image.max_grid):
            sequence.prompt_ids = self._prompt_ids(request, info.grid_rows, info.grid_columns)
        if request.decoding.candidates > 1:
            sequence.candidates = Candidates(
                request.decoding.candidates, max_tokens=sequence.max_tokens, stop_ids=manifest.stop_ids
            )
        elif request.decoding.num_beams > 1:
            generation, sampling = manifest.generation, sequence.sampling
            sequence.beams = BeamSearch(
                sequence.text_ids,
                width=request.decoding.num_beams,
                max_tokens=sequence.max_tokens,
                stop_ids=manifest.stop_ids,
                length_penalty=generation.length_penalty,
                early_stopping=generation.early_stopping,
                repetition_penalty=sampling.repetition_penalty,
                no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            )

    def details(self, request: InFlightRequest, reason: FinishReason) -> Details:
        """Return how a finished caption was made; `reason` is why the engine ended it."""
        assert request.info is not None
        sequence, now = request.sequence, time.monotonic()
        encode_s = request.encode_ended - request.encode_started
        queue_s = request.encode_started - request.arrived + sequence.started - request.encode_ended
        mean_logprob = sequence.logprob_sum / max(sequence.num_sampled_tokens, 1)
        calibration = self.manifest.calibration
        confidence = None if calibration is None else round(calibration.confidence(mean_logprob), 4)
        first_token = request.first_token or now  # a caption may end at its first token
        if request.text_limits is not None:
            request.text_limits.push([], final=True)  # text held back so far may still exceed a limit
            reason = request.text_limits.finish_reason or reason
        return Details(
            model=self.manifest.model,
            revision=self.manifest.revision,
            version=self._version,
            prompt=request.prompt.text,
            seed=sequence.sampling.seed,
            max_tokens=sequence.max_tokens,
            max_characters=request.parameters.max_characters,
            temperature=sequence.sampling.temperature,
            top_p=sequence.sampling.top_p,
            top_k=sequence.sampling.top_k,
            repetition_penalty=sequence.sampling.repetition_penalty,
            num_beams=request.decoding.num_beams,
            candidates=request.decoding.candidates,
            finish_reason=reason,
            tokens=len(sequence.token_ids),
            prompt_tokens=len(sequence.prompt_ids),
            confidence=confidence,
            unsure=None if calibration is None or confidence is None else confidence < calibration.unsure_below,
            mean_logprob=round(mean_logprob, 4),
            image=request.info,
            timings_ms=Timings(
                *(round(s * 1000, 2) for s in (queue_s, encode_s, first_token - request.arrived, now - request.arrived))
            ),
            cache_hit=request.cache_hit,
            system=request.prompt.system,
            language=request.prompt.language,
            no_repeat_ngram_size=sequence.sampling.no_repeat_ngram_size,
            regions=self._regions(request, request.info),
        )
