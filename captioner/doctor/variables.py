"""The environment variables that matter, with secrets hidden."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from captioner.doctor.report import Problem
from captioner.errors import StartupRefused
from captioner.machine import Facts
from captioner.serving.settings import Settings

VARIABLES = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS|CAPTIONER|CUDA|NVIDIA|OMP|RAY|TRITON)_|\w+_PROXY$", re.IGNORECASE)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
SECRET_VALUE = re.compile(r"hf_\w{8,}|//[^/@\s]+@")  # a Hub token; user name and password in a URL


def variables(environment: Mapping[str, str], problems: list[Problem]) -> Facts:
    """Return the Hub cache and the environment variables that matter, with secrets hidden; report bad settings."""
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    facts: Facts = {"Hub cache": f"{_masked('', str(cache))}{'' if cache.is_dir() else ' (does not exist)'}"}
    facts["models in it"] = models
    facts |= {name: _masked(name, value) for name, value in sorted(environment.items()) if VARIABLES.match(name)}
    try:
        Settings.parse({}, environment)
    except StartupRefused as refusal:
        problems.append(Problem(f"{_masked('', str(refusal))}; correct or unset the CAPTIONER_ variable"))
    return facts


def _masked(name: str, value: str) -> str:
    if SECRET.search(name):
        return "set, hidden"
    return SECRET_VALUE.sub(lambda match: "//hidden@" if match[0].startswith("//") else "hidden", value)
