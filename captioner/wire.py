"""The wire: every tensor and request parameter, with type, dims, unit, default and range.

The one truth for the committed `config.pbtxt` files (a test compares them), the `model.py` files, the clients, the
command line and the page. It knows nothing of Triton or of any model.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from captioner.errors import ParameterInvalid, ParameterUnknown

HTTP_PORT, GRPC_PORT, METRICS_PORT, PAGE_PORT = 8000, 8001, 8002, 7860
MAX_IMAGE_BYTES = 20 * 2**20

# Triton consumes these itself and shows some of them to the model all the same.
TRITON_PARAMETERS = frozenset({"id", "binary_data_output", "user-agent"})


@dataclass(frozen=True)
class Tensor:
    """A tensor at a Triton model's door; `dims` leave the batch out, −1 is any size."""

    name: str
    data_type: Literal["TYPE_STRING", "TYPE_UINT8", "TYPE_FP32"]
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelWire:
    """What goes into a Triton model and what comes out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


IMAGE = Tensor("image", "TYPE_STRING", (1,))  # the file as it is, base64, or a data URL
PROMPT = Tensor("prompt", "TYPE_STRING", (1,), optional=True)  # UTF-8, used as it is
CAPTION = Tensor("caption", "TYPE_STRING", (1,))  # the new text since the last response
DETAILS = Tensor("details", "TYPE_STRING", (1,))  # JSON of `Details` or `ModelCard`, in the last response
PIXELS = Tensor("pixels", "TYPE_UINT8", (-1, -1, 3))  # (height, width, RGB)
IMAGE_INFO = Tensor("image_info", "TYPE_STRING", (1,))  # JSON of `ImageInfo`
FEATURES = Tensor("features", "TYPE_FP32", (-1, -1))  # (image tokens, width)

EncoderPrecision = Literal["fp32", "fp16", "int8"]
ADMIN_HEADER = "captioner-admin"  # opens model control to the holder of the server's key
CAPTIONER = "captioner"
PREPROCESS = "preprocess"
VISION_ENCODER = "vision_encoder"

MODELS = {
    CAPTIONER: ModelWire((Tensor("image", "TYPE_STRING", (1,), optional=True), PROMPT), (CAPTION, DETAILS)),
    PREPROCESS: ModelWire((IMAGE,), (PIXELS, IMAGE_INFO)),
    VISION_ENCODER: ModelWire((PIXELS,), (FEATURES,)),
}


@dataclass(frozen=True)
class Parameter:
    """One request parameter. `default` None means that the model's own default holds."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    doc: str
    default: str | int | float | bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""

    @property
    def range(self) -> str:
        """The allowed values in words, for refusals and help texts."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.minimum:g} to {self.maximum:g}" + (f" {self.unit}" if self.unit else "")

    def check(self, value: object) -> str | int | float | bool:
        """`value` in this parameter's type, or ParameterInvalid naming the value and the range."""
        if self.kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)  # JSON writes 1.0 as 1
        fits = type(value) is self.kind
        if fits and self.minimum is not None and self.maximum is not None:
            fits = self.minimum <= value <= self.maximum  # type: ignore[operator]  # NaN is in no range
        if fits and isinstance(value, str):  # JSON can write half a character, which no tokenizer reads
            fits = not any("\ud800" <= character <= "\udfff" for character in value)
        if not fits:
            raise ParameterInvalid(f"{self.name} is {reprlib.repr(value)}; it must be {self.range}")
        return value  # type: ignore[return-value]


PARAMETERS = {
    parameter.name: parameter
    for parameter in (
        Parameter("style", str, "the kind of caption, one of the model's styles"),
        Parameter("length", str, "short, medium or long, where the model knows lengths"),
        Parameter("extras", str, 'JSON list of extra instructions by name, such as ["camera"]'),
        Parameter("name", str, "how to call the person or character in the image"),
        Parameter("max_tokens", int, "the most tokens to write", None, 1, 2048, "tokens"),
        Parameter(
            "max_characters",
            int,
            "the most characters of the caption, which ends at the last whole sentence that fits, or word",
            None,
            10,
            10_000,
            "characters",
        ),
        Parameter("temperature", float, "0 takes the likeliest token; higher is more varied", 0.0, 0, 2),
        Parameter("top_p", float, "sample from the likeliest tokens holding this much probability", 1.0, 0.01, 1),
        Parameter("top_k", int, "sample from this many likeliest tokens; 0 takes all", 0, 0, 1000, "tokens"),
        Parameter("repetition_penalty", float, "above 1 discourages tokens already written", None, 0.5, 2),
        Parameter("num_beams", int, "above 1, search this many texts at once for the likeliest", None, 1, 5, "beams"),
        Parameter("stop", str, 'JSON list of up to 4 texts that end the caption and are no part of it, such as ["."]'),
        Parameter("repetition_guard", bool, "end a caption that has begun to repeat itself", True),
        Parameter("seed", int, "equal seeds give equal captions; drawn and reported if absent", None, 0, 2**53),
        Parameter("stream", bool, "send text as it is written (the default over gRPC), or one answer", None),
        Parameter("deadline_ms", int, "give up, or end the caption, after this long", None, 1, 600_000, "ms"),
        Parameter("priority_level", int, "1 is served first, 3 last", 2, 1, 3),
        Parameter("describe", bool, "answer with the model's card; no image is read", False),
    )
}


TEXT_LISTS = frozenset({"extras", "stop"})  # JSON in a string: Triton's doors refuse lists
MAX_STOPS = 4


@dataclass(frozen=True)
class CaptionParameters:
    """The checked parameters of one request; None leaves the choice to the model."""

    style: str | None = None
    length: str | None = None
    extras: tuple[str, ...] = ()
    name: str | None = None
    max_tokens: int | None = None
    max_characters: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float | None = None
    num_beams: int | None = None
    stop: tuple[str, ...] = ()
    repetition_guard: bool = True
    seed: int | None = None
    stream: bool | None = None
    deadline_ms: int | None = None
    priority_level: int = 2
    describe: bool = False


def sent(parameters: Mapping[str, object]) -> dict[str, Any]:
    """Parameters as they travel: None is left out, a list of texts is JSON."""
    values = {name: value for name, value in parameters.items() if value is not None}
    for name in TEXT_LISTS & values.keys():
        if isinstance(values[name], list | tuple):
            values[name] = json.dumps(values[name])
    return values


def parse_parameters(values: Mapping[str, object]) -> CaptionParameters:
    """Checks every value; ParameterUnknown or ParameterInvalid names the first that does not fit."""
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in TRITON_PARAMETERS or name.startswith("triton_"):
            continue
        parameter = PARAMETERS.get(name)
        if parameter is None:
            raise ParameterUnknown(f"{reprlib.repr(name)} is no parameter; the parameters are {', '.join(PARAMETERS)}")
        checked[name] = parameter.check(value)
    for name in TEXT_LISTS & checked.keys():
        checked[name] = _texts(name, checked[name])
    if not len(checked.get("stop", ())) <= MAX_STOPS or not all(checked.get("stop", ())):
        raise ParameterInvalid(
            f"stop is {reprlib.repr(checked['stop'])}; it must be up to {MAX_STOPS} texts, none empty"
        )
    return CaptionParameters(**checked)


def _texts(name: str, text: str) -> tuple[str, ...]:
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ParameterInvalid(f'{name} is {text[:80]!r}; it must be a JSON list of texts, such as ["one", "two"]')
    return tuple(texts)


@dataclass(frozen=True)
class ImageInfo:
    """What the image was before it became pixels."""

    format: str
    width: int  # px, as shown (after rotation)
    height: int  # px
    frames: int
    rotated: bool  # EXIF orientation was applied
    alpha: bool  # transparency was laid on white
    tile_rows: int = 0  # for models that look at large images in tiles and as a whole; 0 if only as a whole
    tile_columns: int = 0


@dataclass(frozen=True)
class Timings:
    """Where one request's time went, in ms since it arrived."""

    queue: float
    encode: float
    first_token: float
    total: float


# Of itself or at a stop text, at max_tokens or max_characters, at a loop, at deadline_ms.
Ending = Literal["stop", "length", "repetition", "deadline"]


@dataclass(frozen=True)
class Details:
    """How a caption came to be: enough to make it again."""

    model: str
    revision: str
    version: str  # Triton's version number of the model
    prompt: str  # exactly what the model was given
    seed: int
    max_tokens: int
    max_characters: int | None
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    num_beams: int
    finish_reason: Ending
    tokens: int  # of the caption
    prompt_tokens: int  # in front of it; the image's among them where the family puts the image among the words
    confidence: float | None  # that the main subject is right; None where the model carries no calibration
    unsure: bool | None  # confidence is under the model's own threshold
    mean_logprob: float  # nats a token; not a probability of being right
    image: ImageInfo
    timings_ms: Timings
    cache_hit: bool  # the image's features were already known

    @classmethod
    def from_json(cls, text: str) -> Details:
        """Reads what `to_json` wrote."""
        values = json.loads(text)
        values["image"] = ImageInfo(**values["image"])
        values["timings_ms"] = Timings(**values["timings_ms"])
        return cls(**values)


@dataclass(frozen=True)
class Caption:
    """A whole caption and how it came to be."""

    text: str
    details: Details

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ModelCard:
    """What a client may ask of the model that is served. `styles` maps each style to its lengths."""

    model: str
    revision: str
    version: str
    license: str
    base_model: str  # what it was tuned from, as its card says; empty where it says nothing
    intended_use: str  # a paragraph of its card
    styles: dict[str, list[str]]
    extras: dict[str, str]  # name → the sentence it adds to the prompt
    takes_name: bool
    default_style: str
    default_length: str
    max_tokens: int
    device: str
    precision: str  # of the decoder
    encoder_precision: str
    follows_instructions: bool  # a prompt is answered; otherwise it is the beginning of the caption
    prompts: dict[str, dict[str, str]] = field(default_factory=dict)  # style → length → the exact prompt

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


def to_json(value: Details | ModelCard | ImageInfo) -> str:
    """Compact JSON; text outside ASCII stays readable."""
    return json.dumps(asdict(value), ensure_ascii=False, separators=(",", ":"))


assert {f.name for f in fields(CaptionParameters)} == set(PARAMETERS)  # one table, one dataclass: they must agree
