"""Load one model of a running server anew, so that a dead stub process costs less than a restart of everything."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from captioner.artifacts.version_store import VersionStore
from captioner.publish.model_control import ModelControl
from captioner.wire import MODELS

LOAD_SECONDS = 60.0  # a load that takes longer is given up for a restart


def can_reload(repository: Path, model: str) -> bool:
    """Return whether the requests in flight of a dead stub of `model` end: those of a decoupled model never do."""
    config = model_config_pb2.ModelConfig()
    text_format.Parse((repository / model / "config.pbtxt").read_text("utf-8"), config)
    return not config.model_transaction_policy.decoupled


def reload(repository: Path, address: str, key: str, model: str) -> None:
    """Unload `model` and load the same versions of it.

    Until they are ready, requests for the model fail as while the server starts. The old version stays in the server's
    memory, because its dead stub never answers. Raises CaptionerError, RepositoryBusy while somebody publishes.
    """
    # In a read-only repository nobody can publish, and a toy model has no versions to lock.
    shared = model in MODELS and os.access(repository, os.W_OK)
    with VersionStore(repository).lock() if shared else nullcontext():
        control = ModelControl(address, key, LOAD_SECONDS)
        versions = control.loaded(model)
        control.unload(model)
        control.load(repository, model, versions)
