"""The request parameters: one table with type, range, default and help text, and the parser that checks them."""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from captioner.errors import ParameterInvalid, ParameterUnknown, PromptTooLong
from captioner.wire.tensors import MAX_PROMPT_CHARACTERS

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
MAX_SEED = 2**64 - 1
DRAWN_SEED = -1  # in the clients: the server draws one
MAX_MAX_TOKENS = 2048
# Of all parameters of a request, as JSON: more than every parameter at its maximum length, forwarded or not.
MAX_PARAMETERS_BYTES = 288 * 2**10

# Triton handles these itself, and passes some of them on to the model.
TRITON_PARAMETERS = frozenset({"id", "binary_data_output", "user-agent"})
# All parameters as JSON: what one model sends to another has no floats (Triton 2.51). Triton refuses a client's
# parameter whose name begins with `triton_`.
FORWARDED = "triton_forwarded"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Parameter:
    """One request parameter. With `default` None the model's own default applies. A text has a `max_length`."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    doc: str
    default: str | int | float | bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    max_length: int | None = None  # characters

    @property
    def range(self) -> str:
        """The allowed values as text, for error messages and help."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return f"text of at most {self.max_length} characters"
        noun = "a whole number" if self.kind is int else "a number"
        minimum, maximum = (edge if isinstance(edge, int) else f"{edge:g}" for edge in (self.minimum, self.maximum))
        return f"{noun} from {minimum} to {maximum}" + (f" {self.unit}" if self.unit else "")

    def check_length(self, characters: int) -> None:
        """Raise ParameterInvalid for a text above the maximum length."""
        if self.max_length is not None and characters > self.max_length:
            raise ParameterInvalid(f"{self.name} has {characters} characters; the limit is {self.max_length}")

    def check(self, value: object) -> str | int | float | bool:
        """Return `value` in this parameter's type. Raises ParameterInvalid, which names the value and the range."""
        if self.kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)  # JSON writes 1.0 as 1
        if isinstance(value, str):
            self.check_length(len(value))
        valid = type(value) is self.kind
        if valid and self.minimum is not None and self.maximum is not None:
            valid = self.minimum <= value <= self.maximum  # type: ignore[operator]  # False for NaN
        if valid and isinstance(value, str):  # JSON can contain lone surrogates, which tokenizers reject
            valid = _LONE_SURROGATE.search(value) is None
        if not valid:
            raise ParameterInvalid(f"{self.name} is {reprlib.repr(value)}; it must be {self.range}")
        return value  # type: ignore[return-value]


PARAMETERS = {
    parameter.name: parameter
    for parameter in (
        Parameter("style", str, "the kind of caption, one of the model's styles", max_length=64),
        Parameter("length", str, "short, medium or long, if the model has lengths", max_length=64),
        Parameter("extras", str, 'JSON list of the names of extra instructions, such as ["camera"]', max_length=4096),
        Parameter("system", str, "the text of the system turn, for models that have one", max_length=16_384),
        Parameter("name", str, "the name of the person or character in the image", max_length=200),
        Parameter(
            "language",
            str,
            "the language to write in, as a name or BCP 47 tag, such as German or pt-BR; for models that follow "
            "instructions",
            max_length=64,
        ),
        Parameter("max_tokens", int, "maximum number of tokens to generate", None, 1, MAX_MAX_TOKENS, "tokens"),
        Parameter("fit_max_tokens", bool, "reduce max_tokens to what the model has room for, not refuse it", False),
        Parameter(
            "max_characters",
            int,
            "maximum length of the caption, which ends after the last complete sentence that fits, or else word",
            None,
            10,
            10_000,
            "characters",
        ),
        Parameter("temperature", float, "0 selects the most likely token; higher values vary more", 0.0, 0, 2),
        Parameter("top_p", float, "sample from the most likely tokens that hold this much probability", 1.0, 0.01, 1),
        Parameter("top_k", int, "sample from this many most likely tokens; 0 uses all", 0, 0, 1000, "tokens"),
        Parameter("repetition_penalty", float, "above 1 discourages tokens that are already in the text", None, 0.5, 2),
        Parameter(
            "no_repeat_ngram_size", int, "no sequence of this many tokens comes twice; 0: any may", None, 0, 8, "tokens"
        ),
        Parameter("num_beams", int, "above 1, use beam search with this many beams", None, 1, 5, "beams"),
        Parameter(
            "candidates",
            int,
            "above 1, sample this many captions and return the one that the others support most",
            1,
            1,
            16,
            "captions",
        ),
        Parameter(
            "stop",
            str,
            f"one text or a JSON list of up to {MAX_STOPS} texts, each of at most {MAX_STOP_CHARACTERS} characters, "
            "that end the caption and are cut from it",
            max_length=16_384,
        ),
        Parameter("repetition_guard", bool, "end a caption that repeats itself", True),
        Parameter("seed", int, "equal seeds give equal captions; if absent, drawn and reported", None, 0, MAX_SEED),
        Parameter("stream", bool, "send text as it is generated (the default over gRPC), or one response", None),
        Parameter("deadline_ms", int, "fail, or end the caption, after this time", None, 1, 600_000, "ms"),
        Parameter("priority_level", int, "1 is served first, 3 last", 2, 1, 3),
        Parameter(
            "client_id",
            str,
            "requests with equal client_id share their turns while the server is busy; drawn by the Python client",
            max_length=64,
        ),
        Parameter("describe", bool, "return the model card instead of a caption; no image is read", False),
    )
}

TEXT_LISTS = frozenset({"extras", "stop"})  # sent as JSON text: Triton's request parameters cannot be lists


@dataclass(frozen=True)
class CaptionParameters:
    """The checked parameters of one request. None selects the model's default."""

    style: str | None = None
    length: str | None = None
    extras: tuple[str, ...] = ()
    system: str | None = None
    name: str | None = None
    language: str | None = None
    max_tokens: int | None = None
    fit_max_tokens: bool = False
    max_characters: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    candidates: int = 1
    stop: tuple[str, ...] = ()
    repetition_guard: bool = True
    seed: int | None = None
    stream: bool | None = None
    deadline_ms: int | None = None
    priority_level: int = 2
    client_id: str = ""
    describe: bool = False


assert {field.name for field in fields(CaptionParameters)} == set(PARAMETERS)  # the table and the class must agree


def encode_parameters(parameters: Mapping[str, object]) -> dict[str, Any]:
    """Return parameters as they are sent: without None and a seed of -1, and with lists of texts as JSON.

    Raises ParameterInvalid for a list with too much text.
    """
    values = {name: value for name, value in parameters.items() if value is not None}
    if values.get("seed") == DRAWN_SEED:
        del values["seed"]
    for name in TEXT_LISTS & values.keys():
        texts = values[name]
        if isinstance(texts, list | tuple):
            PARAMETERS[name].check_length(sum(len(text) for text in texts if isinstance(text, str)))
            values[name] = json.dumps(texts)
    return values


def as_int64(number: int) -> int:
    """Return a number below 2**64 as Triton's signed 64 bits hold it: above 2**63 - 1 it is negative."""
    return number - (MAX_SEED + 1) if number > MAX_SEED // 2 else number


def check_prompt(prompt: str) -> None:
    """Raise PromptTooLong for a prompt above the maximum length, which bounds the time to tokenize it."""
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise PromptTooLong(f"the prompt has {len(prompt)} characters; the limit is {MAX_PROMPT_CHARACTERS}")


def decode_prompt(prompt: bytes) -> str:
    """Return the text of a prompt. Raises PromptTooLong before anything is tokenized, and ParameterInvalid."""
    if len(prompt) > 4 * MAX_PROMPT_CHARACTERS:  # a character has at most 4 bytes
        raise PromptTooLong(f"the prompt has {len(prompt)} bytes; the limit is {MAX_PROMPT_CHARACTERS} characters")
    try:
        text = prompt.decode()
    except UnicodeDecodeError as error:
        raise ParameterInvalid(f"prompt is not UTF-8 text: byte {error.start} is {prompt[error.start]:#04x}") from None
    check_prompt(text)
    return text


def forward_parameters(parameters: Mapping[str, object]) -> dict[str, str]:
    """Return parameters as one model sends them to another. `load_parameters` reads them."""
    return {FORWARDED: json.dumps(parameters, ensure_ascii=False)}


def load_parameters(text: str, timeout_us: int = 0) -> dict[str, object]:
    """Return the parameters of a request to Triton, which passes them as JSON. Raises ParameterInvalid for a long text.

    All other requests wait while one is parsed. `timeout_us`: tritonclient's parameter `timeout`, which Triton passes
    apart from the others; it is a deadline.
    """
    if len(text) > MAX_PARAMETERS_BYTES:
        raise ParameterInvalid(f"the parameters have {len(text)} bytes; the limit is {MAX_PARAMETERS_BYTES}")
    values: dict[str, object] = json.loads(text or "{}")
    if isinstance(forwarded := values.get(FORWARDED), str):
        values = json.loads(forwarded)
    if timeout_us:
        values.setdefault("deadline_ms", max(round(timeout_us / 1000), 1))
    if type(seed := values.get("seed")) is int and seed < 0:  # see `as_int64`
        values["seed"] = seed % (MAX_SEED + 1)
    return values


def parse_parameters(values: Mapping[str, object]) -> CaptionParameters:
    """Check every value. Raises ParameterUnknown or ParameterInvalid for the first wrong name or value.

    The cost is bounded: a text is not read beyond its maximum length.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in TRITON_PARAMETERS or name.startswith("triton_"):
            continue
        parameter = PARAMETERS.get(name)
        if parameter is None:
            known = ", ".join(PARAMETERS)
            raise ParameterUnknown(f"{reprlib.repr(name)} is not a parameter; the parameters are {known}")
        checked[name] = parameter.check(value)
    for name in TEXT_LISTS & checked.keys():
        checked[name] = _texts(name, checked[name])
    stops = checked.get("stop", ())
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        rule = f"up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters"
        raise ParameterInvalid(f"stop is {reprlib.repr(stops)}; it must be {rule}")
    if "language" in checked and not _is_language(checked["language"]):
        rule = "a name or BCP 47 tag of letters, digits, hyphens and single spaces, such as German or pt-BR"
        raise ParameterInvalid(f"language is {reprlib.repr(checked['language'])}; it must be {rule}")
    return CaptionParameters(**checked)


def _is_language(text: str) -> bool:
    """Return whether a text begins with a letter and holds what names and tags of languages consist of."""
    kinds = {unicodedata.category(character) for character in text if character not in "- "}
    letters = all(kind[0] in "LM" or kind == "Nd" for kind in kinds)  # M: the vowel signs of Hindi, Thai and others
    return letters and text[:1].isalpha() and " ".join(text.split()) == text


def _texts(name: str, text: str) -> tuple[str, ...]:
    """Return the texts of a JSON list. A text that is none is one stop text, as in other services' APIs."""
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) and name == "stop":
        return (text,)
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ParameterInvalid(f'{name} is {text[:80]!r}; it must be a JSON list of texts, such as ["one", "two"]')
    return tuple(texts)
