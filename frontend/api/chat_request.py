"""A chat in OpenAI's words → an image, a prompt and the wire's parameters. What cannot be had is refused by name.

A value that changes nothing here is accepted; one that would change the answer and is not supported is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from captioner.errors import ImageMissing, ParameterInvalid, ParameterUnknown, ParameterUnsupported
from captioner.wire import CAPTIONER, PARAMETERS, ModelCard
from frontend.http_errors import ModelUnknown

ROLES = ("system", "developer", "user", "assistant")
CHOICES = ("style", "length", "extras", "name")  # what makes a prompt, in place of a text
BOUNDS = ("max_tokens", "max_completion_tokens")
WIRE_NAMES = tuple(name for name in PARAMETERS if name not in ("stream", "describe", *BOUNDS))
OWN_NAMES = ("model", "messages", "stream", "stream_options", *BOUNDS)
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")  # for OpenAI's books
NEUTRAL: dict[str, tuple[object, ...]] = {  # what may be said, since it is so anyway
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
DETAIL = ("auto", "low", "high", "original")  # a hint of cost; a model here sees every image in its own way
STREAM_OPTIONS = ("include_usage", "include_obfuscation")


@dataclass(frozen=True)
class ChatRequest:
    """What a chat asks for."""

    image: str  # a data URL or an address
    prompt: str | None
    parameters: dict[str, Any]
    stream: bool
    include_usage: bool
    unused_text: str  # what the messages say and this model does not read


@dataclass
class Turn:
    """What one message holds."""

    role: str
    texts: list[str]
    images: list[str]


def chat_request(body: dict[str, Any], card: ModelCard) -> ChatRequest:
    """The request in `body`, for the model of `card`."""
    check_model(body.get("model"), card)
    _check_names(body)
    parameters = {name: body[name] for name in WIRE_NAMES if body.get(name) is not None}
    if isinstance(parameters.get("stop"), str):
        parameters["stop"] = [parameters["stop"]]
    bound = _bound(body)
    if bound is not None and bound < card.max_tokens:  # more than the model would write anyway changes nothing
        parameters["max_tokens"] = bound
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise ParameterInvalid(f"stream is {_short(stream)}; it must be true or false")
    image, texts, unread = _read_turns(_turns(body.get("messages")))
    prompt = "\n\n".join(texts) or None
    if prompt is not None and not card.follows_instructions:
        unread, prompt = [*texts, *unread], None
    chosen = [name for name in CHOICES if name in parameters]
    if prompt is not None and chosen:
        raise ParameterInvalid(f"{chosen[0]} is given, and a text too: both say what to write; one of them must go")
    return ChatRequest(image, prompt, parameters, bool(stream), _include_usage(options), "\n\n".join(unread))


def check_model(name: object, card: ModelCard) -> None:
    """Raises ModelUnknown unless `name` is the served model: its id, MODEL@REVISION, or just `captioner`."""
    if name is None:
        raise ParameterInvalid("model is missing; it must be text")
    base, _, revision = str(name).rpartition("@")
    is_served = base in (card.model, CAPTIONER) and revision in (card.revision, card.revision[:7])
    if name not in (card.model, CAPTIONER) and not is_served:
        raise ModelUnknown(f"the model {_short(name)} is not served here; {card.model} is")


def _check_names(body: dict[str, Any]) -> None:
    for name, value in body.items():
        if name in (*OWN_NAMES, *WIRE_NAMES, *LABELS):
            continue
        if name not in NEUTRAL:
            known = ", ".join((*OWN_NAMES, *WIRE_NAMES))
            raise ParameterUnknown(f"{name[:80]!r} is no parameter here; the parameters are {known}")
        unused_tools = name in ("tools", "functions") and "none" in (body.get("tool_choice"), body.get("function_call"))
        if value is not None and not unused_tools and not any(_same(value, each) for each in NEUTRAL[name]):
            accepted = " or ".join(json.dumps(each) for each in NEUTRAL[name])
            raise ParameterUnsupported(f"{name} is {_short(value)}; this server supports {accepted} only")


def _bound(body: dict[str, Any]) -> int | None:
    """The most tokens that the caller wants; both of OpenAI's names hold."""
    bounds = []
    for name in BOUNDS:
        value = body.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise ParameterInvalid(f"{name} is {_short(value)}; it must be a whole number from 1")
            bounds.append(value)
    return min(bounds, default=None)


def _include_usage(options: object) -> bool:
    if options is None:
        return False
    fits = isinstance(options, dict) and all(name in STREAM_OPTIONS for name in options)
    if not fits or not all(isinstance(value, bool | None) for value in options.values()):  # type: ignore[attr-defined]
        raise ParameterInvalid(f"stream_options is {_short(options)}; it must be {{'include_usage': true or false}}")
    return bool(options.get("include_usage"))  # type: ignore[attr-defined]


def _read_turns(turns: list[Turn]) -> tuple[str, list[str], list[str]]:
    """The last user turn's image; the texts that instruct; those of earlier turns, which are not read."""
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=-1)
    images = turns[last].images if last >= 0 else []
    if not images:
        raise ImageMissing("the last user message has no image; it must have one, as image_url")
    if len(images) > 1:
        raise ParameterInvalid(f"messages has {len(images)} images in the last user message; it must be exactly one")
    texts: list[str] = []
    unread: list[str] = []
    for place, turn in enumerate(turns):
        instructs = turn.role in ("system", "developer") or place == last
        (texts if instructs else unread).extend(text for text in turn.texts if text.strip())
        if place != last:
            unread.extend("[an earlier image]" for _ in turn.images)
    return images[0], texts, unread


def _turns(messages: object) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise ParameterInvalid("messages is missing or no list; it must be a list of messages")
    return [_turn(f"messages[{place}]", message) for place, message in enumerate(messages)]


def _turn(where: str, message: object) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ParameterInvalid(f"{where} is no message with a role; it must be of {', '.join(ROLES)}")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], ""):
            raise ParameterUnsupported(f"{where}.{name[:80]} is {_short(value)}; it must be left out")
    turn = Turn(message["role"], [], [])
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise ParameterInvalid(f"{where}.content is {_short(content)}; it must be text or a list of parts")
    for place, part in enumerate([{"type": "text", "text": content}] if isinstance(content, str) else content or []):
        _read_part(f"{where}.content[{place}]", part, turn)
    return turn


def _read_part(where: str, part: object, turn: Turn) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        turn.texts.append(part["text"])
        return
    image = part.get("image_url") if isinstance(part, dict) and kind == "image_url" else None
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise ParameterUnsupported(f"{where} is {_short(part)}; it must be a text or an image_url with a url")
    if image.get("detail") not in (None, *DETAIL) or image.keys() - {"url", "detail"}:
        raise ParameterUnsupported(f"{where}.image_url holds more than a url and a detail of {', '.join(DETAIL)}")
    if not image["url"][:8].lower().startswith(("data:", "http://", "https://")):
        raise ParameterInvalid(f"{where}.image_url is {_short(image['url'])}; it must be a data URL or an address")
    turn.images.append(image["url"])


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)  # True is 1 to Python


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
