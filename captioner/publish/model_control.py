"""Triton's explicit model control: which versions of a model are loaded. It needs the repository's admin key."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from captioner.errors import AccessDenied, ServerUnreachable, from_wire
from captioner.wire import ADMIN_HEADER, CAPTIONER, Tensor

KEY_FILE = ".admin-key"  # in the repository: who can write there decides anyway what is served
KEY_VARIABLE = "CAPTIONER_ADMIN_KEY"
LOAD_SECONDS = 600.0
CALL_SECONDS = 30.0
_POLL_SECONDS = 0.05


def admin_key(repository: Path) -> str:
    """Return the admin key of all servers on this repository: $CAPTIONER_ADMIN_KEY, or the content of KEY_FILE.

    The first call generates KEY_FILE. In a read-only repository nobody can publish, so each call returns a new key that
    is stored nowhere.
    """
    if key := os.environ.get(KEY_VARIABLE):
        return key
    path, generated = repository / KEY_FILE, secrets.token_hex(16)
    with suppress(OSError):
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=repository) as file:  # mode 0600
                file.write(generated)
                file.flush()
                os.link(file.name, path)  # atomic: one of several servers that start together wins
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return generated


class ModelControl:
    """The models of one server.

    Every method raises CaptionerError with Triton's own reason, ServerUnreachable when no server answers, and
    AccessDenied for a wrong key.
    """

    def __init__(self, address: str, key: str, load_seconds: float = LOAD_SECONDS) -> None:
        self.address = address
        self._load_seconds = load_seconds
        self._headers = {f"triton-grpc-protocol-{ADMIN_HEADER}": key}
        self._client = grpc.InferenceServerClient(address)

    def is_ready(self) -> bool:
        """Return whether the server answers and serves captions.

        This asks for the captioner's readiness, not the server's: after one version failed to load, Triton reports the
        server as not ready until it restarts.
        """
        try:
            return bool(self._client.is_model_ready(CAPTIONER, client_timeout=CALL_SECONDS))
        except InferenceServerException:
            return False

    def load(self, repository: Path, model: str, versions: Collection[int]) -> None:
        """Load exactly these versions of `model` from `repository`; return when all of them are ready.

        A version that is loaded already is not reloaded. A version that is left out is unloaded after its requests in
        flight.
        """
        config = model_config_pb2.ModelConfig()
        text_format.Parse((repository / model / "config.pbtxt").read_text("utf-8"), config)
        config.version_policy.specific.versions[:] = sorted(versions)
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        with _typed_errors(self.address):
            self._client.load_model(model, headers=self._headers, config=text, client_timeout=self._load_seconds)

    def unload(self, model: str) -> None:
        """Unload every version of `model`, each after its requests in flight; return before they are unloaded."""
        with _typed_errors(self.address):
            self._client.unload_model(model, headers=self._headers, client_timeout=CALL_SECONDS)

    def loaded(self, model: str) -> set[int]:
        """Return the versions of `model` that are ready or still drain."""
        with _typed_errors(self.address):
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=CALL_SECONDS)
        unloaded = {"UNAVAILABLE", ""}
        return {int(each.version) for each in index.models if each.name == model and each.state not in unloaded}

    def wait_unloaded(self, model: str, version: int, seconds: float) -> bool:
        """Wait up to `seconds` until that version is unloaded; return whether it is."""
        end = time.monotonic() + seconds
        while version in self.loaded(model):
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def infer(
        self, model: str, version: int, tensor: Tensor, value: NDArray[np.generic], output: Tensor
    ) -> NDArray[np.generic]:
        """Run one version of a model that has one input and is not decoupled; return one of its outputs."""
        entry = grpc.InferInput(tensor.name, list(value.shape), np_to_triton_dtype(value.dtype))
        entry.set_data_from_numpy(value)
        with _typed_errors(self.address):
            answer = self._client.infer(
                model, [entry], str(version), [grpc.InferRequestedOutput(output.name)], client_timeout=LOAD_SECONDS
            )
        result: NDArray[np.generic] = answer.as_numpy(output.name)
        return result


@contextmanager
def _typed_errors(address: str) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        message = error.message() or str(error)
        if "restricted" in message:
            raise AccessDenied(f"model control of {address} needs the admin key, see {KEY_FILE}") from None
        if error.status() == "StatusCode.UNAVAILABLE":
            raise ServerUnreachable(f"no answer from {address}: {message}") from None
        raise from_wire(message) from None
