"""Checks of the values in other APIs' requests.

A value that does not change the answer is accepted, and null means that a name is absent. A value that would change the
answer and is not supported is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from captioner.errors import ParameterInvalid, ParameterUnknown, ParameterUnsupported
from captioner.wire import CAPTIONER, MAX_MAX_TOKENS, ModelCard
from frontend.http_errors import ModelUnknown

Neutral = Mapping[str, Sequence[object]]  # the values of a name that change nothing


def check_model(name: object, card: ModelCard, aliases: Collection[str] = ()) -> None:
    """Raise ModelUnknown unless `name` is the served model: its id, MODEL@REVISION, `captioner` or an alias."""
    if name is None:
        raise ParameterInvalid("model is missing; it must be text")
    base, _, revision = str(name).rpartition("@")
    is_served = base in (card.model, CAPTIONER) and revision in (card.revision, card.revision[:7])
    if name not in (card.model, CAPTIONER, *aliases) and not is_served:
        raise ModelUnknown(f"the model {short(name)} is not served; the served model is {card.model}")


def check_names(values: Mapping[str, Any], known: Collection[str], neutral: Neutral) -> None:
    """Raise ParameterUnknown for a name of neither kind, and ParameterUnsupported for a value that is not neutral."""
    for name, value in values.items():
        if value is None or name in known:
            continue
        if name not in neutral:
            raise ParameterUnknown(f"{name[:80]!r} is not a supported parameter; the parameters are {', '.join(known)}")
        if not any(same(value, each) for each in neutral[name]):
            accepted = " or ".join(json.dumps(each) for each in neutral[name]) or "null"
            raise ParameterUnsupported(f"{name} is {short(value)}; this server supports only {accepted}")


def token_limit(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the wire's parameters for the smallest of other APIs' limits `names`, if any is set.

    Their clients send large limits for all models, so a limit above the model's room is reduced to it. Raises
    ParameterInvalid.
    """
    limits = []
    for name in names:
        value = values.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise ParameterInvalid(f"{name} is {short(value)}; it must be a whole number from 1")
            limits.append(value)
    return {"max_tokens": min(*limits, MAX_MAX_TOKENS), "fit_max_tokens": True} if limits else {}


def flag(values: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return a value that is true, false, null or absent. Raises ParameterInvalid for any other."""
    value = values.get(name)
    if not isinstance(value, bool | None):
        raise ParameterInvalid(f"{name} is {short(value)}; it must be true or false")
    return default if value is None else value


def same(value: object, other: object) -> bool:
    """Return whether two values of JSON are equal. In Python, True == 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def short(value: object) -> str:
    """Return a value as JSON of at most 80 characters, for messages."""
    text = json.dumps(value[:80] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
