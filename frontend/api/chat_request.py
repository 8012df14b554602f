"""Parse a chat request of OpenAI's API into an image, a prompt and the wire's parameters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from captioner.errors import ParameterInvalid, ParameterUnsupported
from captioner.wire import PARAMETERS, ModelCard
from frontend.api.request_values import Neutral, check_model, check_names, flag, short, token_limit
from frontend.api.turns import Question, Turn, question
from frontend.client_identity import CLIENT_ID

ROLES = ("system", "developer", "user", "assistant")
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
INTERNAL = ("stream", "describe", "fit_max_tokens", "system", CLIENT_ID)  # this module sets them
WIRE_NAMES = tuple(name for name in PARAMETERS if name not in (*INTERNAL, *TOKEN_LIMITS))
OWN_NAMES = ("model", "messages", "stream", "stream_options", *TOKEN_LIMITS)
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")  # ignored
# The values that match what this server does anyway: of OpenAI's parameters, and of those that vLLM, SGLang, llama.cpp
# and Text Generation Inference add to them.
NEUTRAL: Neutral = {
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

    question: Question
    parameters: dict[str, Any]
    stream: bool
    include_usage: bool


def chat_request(body: dict[str, Any], card: ModelCard, aliases: Collection[str] = ()) -> ChatRequest:
    """Parse `body` for the model of `card`. Raises CaptionerError for the first value that is not supported."""
    check_model(body.get("model"), card, aliases)
    unused_tools = "none" in (body.get("tool_choice"), body.get("function_call"))
    tools = ("tools", "functions") if unused_tools else ()
    check_names(body, (*OWN_NAMES, *WIRE_NAMES, *LABELS, *tools), NEUTRAL)
    parameters = wire_parameters(body) | token_limit(body, *TOKEN_LIMITS)
    asked = question(_turns(body.get("messages")), card, parameters)
    return ChatRequest(asked, parameters, flag(body, "stream"), _include_usage(body.get("stream_options")))


def wire_parameters(body: dict[str, Any]) -> dict[str, Any]:
    """Return the wire's parameters in the body of an OpenAI request, except limits of tokens."""
    parameters = {name: body[name] for name in WIRE_NAMES if body.get(name) is not None}
    if parameters.get("top_k") == -1:  # all tokens, in vLLM and SGLang
        del parameters["top_k"]
    return parameters


def _include_usage(options: object) -> bool:
    if options is None:
        return False
    fits = isinstance(options, dict) and all(name in STREAM_OPTIONS for name in options)
    if not fits or not all(isinstance(value, bool | None) for value in options.values()):  # type: ignore[attr-defined]
        raise ParameterInvalid(f"stream_options is {short(options)}; it must be {{'include_usage': true or false}}")
    return bool(options.get("include_usage"))  # type: ignore[attr-defined]


def _turns(messages: object) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise ParameterInvalid("messages is missing or not a list; it must be a list of messages")
    return [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _turn(path: str, message: object) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ParameterInvalid(f"{path} is not a message with a known role; the roles are {', '.join(ROLES)}")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], ""):
            raise ParameterUnsupported(f"{path}.{name[:80]} is {short(value)}; it must be omitted")
    turn = Turn(message["role"])
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise ParameterInvalid(f"{path}.content is {short(content)}; it must be text or a list of parts")
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
        raise ParameterUnsupported(f"{path} is {short(part)}; it must be a text or an image_url with a url")
    if image.get("detail") not in (None, *DETAIL) or image.keys() - {"url", "detail"}:
        raise ParameterUnsupported(f"{path}.image_url must hold only a url and a detail of {', '.join(DETAIL)}")
    if not image["url"][:8].lower().startswith(("data:", "http://", "https://")):
        raise ParameterInvalid(f"{path}.image_url is {short(image['url'])}; it must be a data URL or an http(s) URL")
    turn.images.append(image["url"])
