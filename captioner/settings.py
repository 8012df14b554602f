"""What an operator may set, with units in the names: `parameters` of model_repository/captioner/config.pbtxt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from captioner.errors import StartupRefused

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Settings:
    """Limits of one captioner instance."""

    slots: int = 16  # captions decoded at once
    max_waiting: int = 64  # requests encoding or waiting beyond that
    feature_cache_mib: int = 256  # 0 turns the cache off
    encode_workers: int = 16  # images on their way through image_encoder at once
    cancel_poll_ms: int = 50
    decode_threads: int = 0  # torch's intra-op threads; 0 takes every core

    def __post_init__(self) -> None:
        for name in ("slots", "encode_workers", "cancel_poll_ms"):
            if getattr(self, name) < 1:
                raise StartupRefused(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_waiting", "feature_cache_mib", "decode_threads"):
            if getattr(self, name) < 0:
                raise StartupRefused(f"{name} is {getattr(self, name)}; it must be at least 0")

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Settings:
        """From the strings of a config.pbtxt; StartupRefused names an unknown setting or a bad value."""
        known = [field.name for field in fields(cls)]
        for name, text in texts.items():
            if name not in known:
                raise StartupRefused(f"{name!r} is no setting; the settings are {', '.join(known)}")
            if not _WHOLE_NUMBER.fullmatch(text):
                raise StartupRefused(f"{name} is {text!r}; it must be a whole number")
        return cls(**{name: int(text) for name, text in texts.items()})
