"""Parse a chat request of OpenAI's API into an image, a prompt and the wire's parameters.

A value that does not change the answer is accepted. A value that would change it and is not supported is an error that
names the parameter.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from captioner.errors import ImageMissing, ParameterInvalid, ParameterUnknown, ParameterUnsupported
from captioner.wire import CAPTIONER, MAX_MAX_TOKENS, PARAMETERS, ModelCard
from frontend.client_identity import CLIENT_ID
from frontend.http_errors import BodyTooLarge, ModelUnknown
from frontend.middleware.limits import MAX_TEXT_BYTES

ROLES = ("system", "developer", "user", "assistant")
PROMPT_CHOICES = ("style", "length", "extras", "name")  # they select a prompt, so they exclude a text
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
INTERNAL = ("stream", "describe", "fit_max_tokens", CLIENT_ID)  # this module sets them
WIRE_NAMES = tuple(name for name in PARAMETERS if name not in (*INTERNAL, *TOKEN_LIMITS))
OWN_NAMES = ("model", "messages", "stream", "stream_options", *TOKEN_LIMITS)
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")  # ignored
# The values that match what this server does anyway: of OpenAI's parameters, and of those that vLLM, SGLang, llama.cpp
# and Text Generation Inference add to them.
NEUTRAL: dict[str, tuple[object, ...]] = {
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
    "reasoning_effort": ("none",),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
    "best_of": (1,),
    "cache_prompt": (True, False),
    "continue_final_message": (False,),
    "do_sample": (True, False),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "early_stopping": (False,),
    "echo": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_keep": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "n_keep": (0,),
    "n_probs": (0,),
    "no_stop_trim": (False,),
    "repeat_penalty": (1,),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "tfs_z": (1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
DETAIL = ("auto", "low", "high", "original")  # a hint about cost; each model here has its own image size
STREAM_OPTIONS = ("include_usage", "include_obfuscation")


@dataclass(frozen=True)
class ChatRequest:
    """A parsed chat request."""

    image: str  # a data URL or an http(s) URL
    prompt: str | None
    parameters: dict[str, Any]
    stream: bool
    include_usage: bool
    unused_text: str  # text of the messages that this model ignores


@dataclass
class Turn:
    """The content of one message."""

    role: str
    texts: list[str]
    images: list[str]


def chat_request(body: dict[str, Any], card: ModelCard, aliases: Collection[str] = ()) -> ChatRequest:
    """Parse `body` for the model of `card`. Raises CaptionerError for the first value that is not supported."""
    check_model(body.get("model"), card, aliases)
    _check_names(body)
    parameters = {name: body[name] for name in WIRE_NAMES if body.get(name) is not None}
    if isinstance(parameters.get("stop"), str):
        parameters["stop"] = [parameters["stop"]]
    if parameters.get("top_k") == -1:  # all tokens, in vLLM and SGLang
        del parameters["top_k"]
    limit = _token_limit(body)
    if limit is not None:  # clients send large limits for all models: a larger one than the model's room is reduced
        parameters |= {"max_tokens": min(limit, MAX_MAX_TOKENS), "fit_max_tokens": True}
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise ParameterInvalid(f"stream is {_short(stream)}; it must be true or false")
    image, texts, unused = _read_turns(_turns(body.get("messages")))
    characters = sum(map(len, (*texts, *unused)))
    if characters > MAX_TEXT_BYTES:
        raise BodyTooLarge(f"messages has {characters} characters of text; the limit is {MAX_TEXT_BYTES}")
    prompt = "\n\n".join(texts) or None
    if prompt is not None and not card.follows_instructions:
        unused, prompt = [*texts, *unused], None
    chosen = [name for name in PROMPT_CHOICES if name in parameters]
    if prompt is not None and chosen:
        raise ParameterInvalid(f"{chosen[0]} is given together with a text; both set the prompt, so send only one")
    return ChatRequest(image, prompt, parameters, bool(stream), _include_usage(options), "\n\n".join(unused))


def check_model(name: object, card: ModelCard, aliases: Collection[str] = ()) -> None:
    """Raise ModelUnknown unless `name` is the served model: its id, MODEL@REVISION, `captioner` or an alias."""
    if name is None:
        raise ParameterInvalid("model is missing; it must be text")
    base, _, revision = str(name).rpartition("@")
    is_served = base in (card.model, CAPTIONER) and revision in (card.revision, card.revision[:7])
    if name not in (card.model, CAPTIONER, *aliases) and not is_served:
        raise ModelUnknown(f"the model {_short(name)} is not served; the served model is {card.model}")


def _check_names(body: dict[str, Any]) -> None:
    for name, value in body.items():
        if value is None or name in (*OWN_NAMES, *WIRE_NAMES, *LABELS):
            continue
        if name not in NEUTRAL:
            known = ", ".join((*OWN_NAMES, *WIRE_NAMES))
            raise ParameterUnknown(f"{name[:80]!r} is not a supported parameter; the parameters are {known}")
        unused_tools = name in ("tools", "functions") and "none" in (body.get("tool_choice"), body.get("function_call"))
        if not unused_tools and not any(_same(value, each) for each in NEUTRAL[name]):
            accepted = " or ".join(json.dumps(each) for each in NEUTRAL[name])
            raise ParameterUnsupported(f"{name} is {_short(value)}; this server supports only {accepted}")


def _token_limit(body: dict[str, Any]) -> int | None:
    """Return the smaller of OpenAI's two limits, or None. Raises ParameterInvalid."""
    limits = []
    for name in TOKEN_LIMITS:
        value = body.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise ParameterInvalid(f"{name} is {_short(value)}; it must be a whole number from 1")
            limits.append(value)
    return min(limits, default=None)


def _include_usage(options: object) -> bool:
    if options is None:
        return False
    fits = isinstance(options, dict) and all(name in STREAM_OPTIONS for name in options)
    if not fits or not all(isinstance(value, bool | None) for value in options.values()):  # type: ignore[attr-defined]
        raise ParameterInvalid(f"stream_options is {_short(options)}; it must be {{'include_usage': true or false}}")
    return bool(options.get("include_usage"))  # type: ignore[attr-defined]


def _read_turns(turns: list[Turn]) -> tuple[str, list[str], list[str]]:
    """Return the newest image of a user, the texts that instruct, and the unused texts of other turns.

    The user's texts instruct from the message with the image on. Answers of the assistant never do.
    """
    last = max((index for index, turn in enumerate(turns) if turn.role == "user" and turn.images), default=-1)
    if last < 0:
        raise ImageMissing("no user message has an image; one must have one, as image_url")
    images = turns[last].images
    if len(images) > 1:
        raise ParameterInvalid(f"messages[{last}] has {len(images)} images; it must have exactly one")
    texts: list[str] = []
    unused: list[str] = []
    for index, turn in enumerate(turns):
        instructs = turn.role in ("system", "developer") or (turn.role == "user" and index >= last)
        (texts if instructs else unused).extend(text for text in turn.texts if text.strip())
        if index != last:
            unused.extend("[an earlier image]" for _ in turn.images)
    return images[0], texts, unused


def _turns(messages: object) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise ParameterInvalid("messages is missing or not a list; it must be a list of messages")
    return [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _turn(path: str, message: object) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ParameterInvalid(f"{path} is not a message with a known role; the roles are {', '.join(ROLES)}")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], ""):
            raise ParameterUnsupported(f"{path}.{name[:80]} is {_short(value)}; it must be omitted")
    turn = Turn(message["role"], [], [])
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise ParameterInvalid(f"{path}.content is {_short(content)}; it must be text or a list of parts")
    for index, part in enumerate([{"type": "text", "text": content}] if isinstance(content, str) else content or []):
        _read_part(f"{path}.content[{index}]", part, turn)
    return turn


def _read_part(path: str, part: object, turn: Turn) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        turn.texts.append(part["text"])
        return
    image = part.get("image_url") if isinstance(part, dict) and kind == "image_url" else None
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise ParameterUnsupported(f"{path} is {_short(part)}; it must be a text or an image_url with a url")
    if image.get("detail") not in (None, *DETAIL) or image.keys() - {"url", "detail"}:
        raise ParameterUnsupported(f"{path}.image_url must hold only a url and a detail of {', '.join(DETAIL)}")
    if not image["url"][:8].lower().startswith(("data:", "http://", "https://")):
        raise ParameterInvalid(f"{path}.image_url is {_short(image['url'])}; it must be a data URL or an http(s) URL")
    turn.images.append(image["url"])


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)  # in Python, True == 1


def _short(value: object) -> str:
    text = json.dumps(value[:80] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
