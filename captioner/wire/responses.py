"""What a server answers: the caption, its details, and the card of the served model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# "stop": the model ended the caption, or a stop text did. "length": max_tokens or max_characters. "repetition": the
# repetition guard. "deadline": deadline_ms.
FinishReason = Literal["stop", "length", "repetition", "deadline"]


@dataclass(frozen=True)
class ImageInfo:
    """The properties of the image file, before it was decoded and resized."""

    format: str
    width: int  # px, as shown (after rotation)
    height: int  # px
    frames: int  # of an animation or a sequence; 2 for any TIFF file of several pages
    rotated: bool  # EXIF orientation was applied
    alpha: bool  # transparency was composited on white, or on black where white would hide the picture
    # The grid in which the model reads the image: of tiles, if it splits large images, or of image tokens, if the size
    # is dynamic; 0 if the image was not split.
    grid_rows: int = 0
    grid_columns: int = 0
    frame: int = 0  # the frame of an animation that was captioned: the first that is not one flat color
    shrunk_from: str = ""  # the size of the file that the client shrank before it was sent, "20000x1000 px, 0.7 MiB"


@dataclass(frozen=True)
class Region:
    """A place in the upright image that the caption names, in px: a box, or a polygon for a line of text."""

    label: str
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom
    polygon: tuple[tuple[int, int], ...] | None = None  # the corners, x and y each

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Region:
        """Return the region of a JSON object, whose lists become tuples."""
        box, polygon = values["box"], values["polygon"]
        if box is not None:
            left, top, right, bottom = box
            return cls(values["label"], box=(left, top, right, bottom))
        return cls(values["label"], polygon=None if polygon is None else tuple((x, y) for x, y in polygon))


@dataclass(frozen=True)
class Timings:
    """Times of one request in ms since it arrived."""

    queue: float
    encode: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Details:
    """How a caption was generated, complete enough to reproduce it."""

    model: str
    revision: str
    version: str  # Triton's version number of the model
    prompt: str  # exactly as given to the model
    seed: int
    max_tokens: int
    max_characters: int | None
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    num_beams: int
    finish_reason: FinishReason
    tokens: int  # of the caption
    prompt_tokens: int  # of the prompt; includes image tokens if the family puts them between the prompt's tokens
    confidence: float | None  # probability that the main subject is right; None if the model has no calibration
    unsure: bool | None  # confidence is below the model's threshold
    mean_logprob: float  # nats per token; not a probability of being right
    image: ImageInfo
    timings_ms: Timings
    cache_hit: bool  # the image's features came from the feature cache
    system: str | None = None  # the system turn, if the client gave one
    candidates: int = 1  # captions that were sampled, of which this one was chosen
    language: str | None = None  # that the prompt asks for, if the client gave one: "German" for "de"
    no_repeat_ngram_size: int = 0
    regions: tuple[Region, ...] | None = None  # in the order of the caption; None if the model cannot name places

    @classmethod
    def from_json(cls, text: str) -> Details:
        """Parse what `to_json` wrote."""
        values = json.loads(text)
        values["image"] = ImageInfo(**values["image"])
        values["timings_ms"] = Timings(**values["timings_ms"])
        if values.get("regions") is not None:
            values["regions"] = tuple(Region.from_json(each) for each in values["regions"])
        return cls(**values)


@dataclass(frozen=True)
class Caption:
    """A complete caption and its details."""

    text: str
    details: Details

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ModelCard:
    """The card of the served model. `styles` maps each style to its lengths."""

    model: str
    revision: str
    version: str
    license: str
    base_model: str  # the model it was fine-tuned from, as its card says; empty if the card does not say
    intended_use: str  # a paragraph of its card
    styles: dict[str, list[str]]
    extras: dict[str, str]  # name → the sentence that it adds to the prompt
    takes_name: bool
    default_style: str
    default_length: str
    max_tokens: int
    device: str
    precision: str  # of the decoder
    encoder_precision: str
    follows_instructions: bool  # the model answers any prompt; otherwise its caption continues one, or it knows a few
    takes_system: bool = False  # the model has a system turn
    takes_language: bool = False  # the model can be asked for a language
    language_prompt: str = ""  # the sentence that asks for it
    prompts: dict[str, dict[str, str]] = field(default_factory=dict)  # style → length → the exact prompt

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parse what `to_json` wrote."""
        return cls(**json.loads(text))


def to_json(value: Details | ModelCard | ImageInfo) -> str:
    """Return compact JSON on one line, with non-ASCII text unescaped. Raises ValueError for NaN and infinity."""
    return json.dumps(asdict(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
