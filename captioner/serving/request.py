"""A request to the captioner: as the endpoint received it, and while it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from captioner.engine.sequence import Sequence
from captioner.serving.decoding_options import DecodingOptions
from captioner.serving.detokenizer import Detokenizer
from captioner.serving.prompt_text import RequestedPrompt
from captioner.serving.response_sender import ResponseQueue
from captioner.wire import CaptionParameters, ImageInfo


@dataclass(frozen=True)
class CaptionRequest:
    """One request as the endpoint received it; nothing in it has been validated."""

    image: bytes | None
    prompt: bytes | None
    parameters: Mapping[str, object]
    streaming: bool  # the endpoint's default for the parameter `stream`


@dataclass(eq=False)
class InFlightRequest:
    """One request being answered. Times are of time.monotonic(), in s."""

    queue: ResponseQueue
    sequence: Sequence
    parameters: CaptionParameters
    image: bytes  # emptied once its features are known
    prompt: RequestedPrompt
    decoding: DecodingOptions
    streaming: bool
    arrived: float
    text_limits: Detokenizer | None = None  # on the decode thread; None without stop texts and max_characters
    image_key: bytes = b""  # SHA-256 of the image
    info: ImageInfo | None = None
    cache_hit: bool = False
    encode_started: float = 0.0
    encode_ended: float = 0.0
    first_token: float = 0.0
