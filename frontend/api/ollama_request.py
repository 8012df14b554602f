"""Parse the requests of Ollama's API into turns of a conversation and the wire's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from captioner.errors import ParameterInvalid, ParameterUnsupported
from frontend.api.request_values import Neutral, check_names, short, token_limit
from frontend.api.turns import Turn

ROLES = ("system", "user", "assistant")
CHAT_NAMES = ("model", "messages", "stream", "options", "keep_alive")
GENERATE_NAMES = ("model", "prompt", "images", "system", "stream", "options", "keep_alive")
NEUTRAL: Neutral = {
    "context": ([],),
    "format": ("",),
    "logprobs": (False,),
    "raw": (False,),
    "suffix": ("",),
    "template": ("",),
    "think": (False,),
    "tools": ([],),
    "top_logprobs": (0,),
}
OPTIONS = {  # an option of Ollama → the wire's parameter
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
}
# How Ollama runs a model. `repeat_last_n` too: here, the penalty counts the whole text.
RUNTIME_OPTIONS = (
    *("f16_kv", "low_vram", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_keep", "num_thread", "numa"),
    *("repeat_last_n", "use_mlock", "use_mmap", "vocab_only", "num_predict"),
)
NEUTRAL_OPTIONS: Neutral = {
    "frequency_penalty": (0,),
    "min_p": (0,),
    "mirostat": (0,),
    "mirostat_eta": (0.1,),
    "mirostat_tau": (5,),
    "penalize_newline": (True, False),
    "presence_penalty": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
}


def wire_parameters(options: object) -> dict[str, Any]:
    """Return the wire's parameters for Ollama's `options`. Raises a subclass of ParameterRefused."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ParameterInvalid(f"options is {short(options)}; it must be an object")
    check_names(options, (*OPTIONS, *RUNTIME_OPTIONS), NEUTRAL_OPTIONS)
    parameters = {wire: options[name] for name, wire in OPTIONS.items() if options.get(name) is not None}
    if parameters.get("top_p") == 0:  # no limit, in Ollama
        del parameters["top_p"]
    unlimited = options.get("num_predict") in (-1, -2)
    return parameters | ({} if unlimited else token_limit(options, "num_predict"))


def chat_turns(body: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of a request to /api/chat. Raises ParameterInvalid or ParameterUnsupported."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise ParameterInvalid("messages is missing; it must be a list of messages")
    return [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _turn(path: str, message: object) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ParameterInvalid(f"{path} is not a message with a known role; the roles are {', '.join(ROLES)}")
    for name, value in message.items():
        if name not in ("role", "content", "images") and value not in (None, [], ""):
            raise ParameterUnsupported(f"{path}.{name[:80]} is {short(value)}; it must be omitted")
    return Turn(message["role"], _texts(f"{path}.content", message.get("content")), _images(path, message))


def generate_turns(body: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of a request to /api/generate. Raises ParameterInvalid."""
    system = _texts("system", body.get("system"))
    return [Turn("system", system), Turn("user", _texts("prompt", body.get("prompt")), _images("the request", body))]


def _texts(path: str, text: object) -> list[str]:
    if not isinstance(text, str | None):
        raise ParameterInvalid(f"{path} is {short(text)}; it must be text")
    return [text] if text else []


def _images(path: str, values: Mapping[str, Any]) -> list[str]:
    images = values.get("images")
    if images is None:
        return []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ParameterInvalid(f"{path} has images that are not a list of base64 texts")
    return images
