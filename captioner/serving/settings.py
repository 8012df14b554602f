"""An operator's settings, with units in the names: `parameters` of model_repository/captioner/config.pbtxt.

An environment variable such as CAPTIONER_PRECISION overrides the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from captioner.errors import StartupRefused

AUTO = "auto"
VARIABLE = "CAPTIONER_"
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Settings:
    """Limits of one captioner instance."""

    slots: int = 0  # captions (or beams) decoded at the same time; 0: as many as fit, see engine/capacity.py
    kv_cache_mib: int = 0  # for all slots; 0: half of the memory that the weights leave free
    max_waiting: int = 64  # requests encoding or waiting beyond the slots
    feature_cache_mib: int = 256  # 0 turns the cache off
    encode_workers: int = 16  # images, or cells of their grids, that are encoded at the same time; at least one image
    encode_timeout_s: int = 90  # of one image, in both models of the encoder; longer than the decoder's own limits
    cancel_poll_ms: int = 50
    decode_threads: int = 0  # torch's intra-op threads; 0: every core, or one for a small decoder
    precision: str = AUTO  # of the decoder, see decoders/load_weights.py; auto is bf16 on CUDA and fp32 on a CPU

    def __post_init__(self) -> None:
        for name in ("encode_workers", "encode_timeout_s", "cancel_poll_ms"):
            if getattr(self, name) < 1:
                raise StartupRefused(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("slots", "kv_cache_mib", "max_waiting", "feature_cache_mib", "decode_threads"):
            if getattr(self, name) < 0:
                raise StartupRefused(f"{name} is {getattr(self, name)}; it must be at least 0")

    @classmethod
    def of_config(cls, model_config: str, environment: Mapping[str, str]) -> Settings:
        """Parse the model's config in JSON, as Triton passes it to `initialize`."""
        parameters = json.loads(model_config)["parameters"]
        return cls.parse({name: value["string_value"] for name, value in parameters.items()}, environment)

    @classmethod
    def parse(cls, texts: Mapping[str, str], environment: Mapping[str, str] = MappingProxyType({})) -> Settings:
        """Parse the strings of a config.pbtxt. Raises StartupRefused for an unknown setting or a bad value."""
        known = {field.name: field.type for field in fields(cls)}
        variables = {name: VARIABLE + name.upper() for name in known}
        overrides = {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}
        values: dict[str, int | str] = {}
        for name, text in {**texts, **overrides}.items():
            if name not in known:
                raise StartupRefused(f"{name!r} is not a setting; the settings are {', '.join(known)}")
            if known[name] == "str":
                values[name] = text
            elif _WHOLE_NUMBER.fullmatch(text):
                values[name] = int(text)
            else:
                raise StartupRefused(f"{name} is {text!r}; it must be a whole number")
        return cls(**values)  # type: ignore[arg-type]
