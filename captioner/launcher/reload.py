"""Load one model of a running server anew, so that a dead stub process costs less than a restart of everything."""

from __future__ import annotations

import os
import re
import urllib.request
from contextlib import nullcontext
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from captioner.artifacts.version_store import VersionStore
from captioner.publish.model_control import ModelControl
from captioner.wire import MODELS, UNARY, UNARY_REQUESTS

LOAD_SECONDS = 60.0  # a load that takes longer is given up for a restart
METRICS_SECONDS = 5.0
_UNANSWERED = re.compile(rf"^{UNARY_REQUESTS}(?:{{[^}}]*}})? (\S+)$", re.MULTILINE)


def can_reload(repository: Path, model: str, metrics_address: str) -> bool:
    """Return whether the requests in flight of a dead stub of `model` end.

    Those of a decoupled model never do, nor do those that `caption` has not answered. Raises OSError if the server's
    metrics cannot be read.
    """
    config = model_config_pb2.ModelConfig()
    text_format.Parse((repository / model / "config.pbtxt").read_text("utf-8"), config)
    if model == UNARY:
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=METRICS_SECONDS) as answer:
            return not any(map(float, _UNANSWERED.findall(answer.read().decode())))
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
