"""The model that tests of the Hub pull, its shards, and its folder in the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from huggingface_hub import constants

from captioner.hub.pull import INDEX, SINGLE

MODEL = "tiny/captioner"
CONFIG = "config.json"


def weights(size: int, seed: int = 1) -> bytes:
    """Return bytes in place of weights that no test loads."""
    return hashlib.shake_256(bytes([seed])).digest(size)


def sharded(tiny_files: dict[str, bytes], *shards: str) -> dict[str, bytes]:
    """Return the model's files with three shards of weights, of which the index names the given ones."""
    files = {name: data for name, data in tiny_files.items() if name != SINGLE}
    files |= {f"model-{number}-of-3.safetensors": weights(1000, number) for number in (1, 2, 3)}
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": {f"layer.{name}": name for name in shards}}).encode()
    return files


def repository() -> Path:
    """Return the model's folder in the cache."""
    return Path(constants.HF_HUB_CACHE, "models--tiny--captioner")


def digests() -> set[str]:
    """Return the sha256 of every file in the model's folder."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in repository().rglob("*") if path.is_file()}
