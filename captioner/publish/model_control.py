"""Triton's explicit model control, for whoever holds the repository's key: which versions of a model are loaded."""

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

KEY_FILE = ".admin-key"  # in the repository: who may write there decides anyway what is served
KEY_VARIABLE = "CAPTIONER_ADMIN_KEY"
LOAD_SECONDS = 600.0
CALL_SECONDS = 30.0
_POLL_SECONDS = 0.05


def admin_key(repository: Path) -> str:
    """The key of the servers on this repository: from the environment, from its file, or drawn and kept there.

    In a repository that cannot be written nobody publishes, and a key that was drawn is told to nobody.
    """
    if key := os.environ.get(KEY_VARIABLE):
        return key
    path, drawn = repository / KEY_FILE, secrets.token_hex(16)
    with suppress(OSError):
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=repository) as file:  # mode 0600
                file.write(drawn)
                file.flush()
                os.link(file.name, path)  # whole, and only one of several servers that start at once
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return drawn


class ModelControl:
    """One server's models. Every method raises CaptionerError with Triton's own reason; ServerUnreachable for none."""

    def __init__(self, address: str, key: str) -> None:
        self.address = address
        self._headers = {f"triton-grpc-protocol-{ADMIN_HEADER}": key}
        self._client = grpc.InferenceServerClient(address)

    def is_ready(self) -> bool:
        """Whether the server is there and serves captions; False where there is none.

        The server's own readiness is not asked: Triton denies it as long as it runs once any version failed to load.
        """
        try:
            return bool(self._client.is_model_ready(CAPTIONER, client_timeout=CALL_SECONDS))
        except InferenceServerException:
            return False

    def load(self, repository: Path, model: str, versions: Collection[int]) -> None:
        """Loads exactly these versions of `model`, as `repository` has it; returns when all of them are ready.

        A version that is loaded already goes on undisturbed, and so do requests in flight in one that is left out.
        """
        config = model_config_pb2.ModelConfig()
        text_format.Parse((repository / model / "config.pbtxt").read_text("utf-8"), config)
        config.version_policy.specific.versions[:] = sorted(versions)
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        with _typed(self.address):
            self._client.load_model(model, headers=self._headers, config=text, client_timeout=LOAD_SECONDS)

    def loaded(self, model: str) -> set[int]:
        """The versions of `model` that are ready, or still end what they began."""
        with _typed(self.address):
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=CALL_SECONDS)
        gone = {"UNAVAILABLE", ""}
        return {int(each.version) for each in index.models if each.name == model and each.state not in gone}

    def wait_unloaded(self, model: str, version: int, seconds: float) -> bool:
        """Whether that version ended all that it had begun, within `seconds`."""
        end = time.monotonic() + seconds
        while version in self.loaded(model):
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def infer(
        self, model: str, version: int, tensor: Tensor, value: NDArray[np.generic], output: Tensor
    ) -> NDArray[np.generic]:
        """One output of one version of a model that answers once."""
        entry = grpc.InferInput(tensor.name, list(value.shape), np_to_triton_dtype(value.dtype))
        entry.set_data_from_numpy(value)
        with _typed(self.address):
            answer = self._client.infer(
                model, [entry], str(version), [grpc.InferRequestedOutput(output.name)], client_timeout=LOAD_SECONDS
            )
        found: NDArray[np.generic] = answer.as_numpy(output.name)
        return found


@contextmanager
def _typed(address: str) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        said = error.message() or str(error)
        if "restricted" in said:
            raise AccessDenied(f"{address} keeps model control to whoever has its key, see {KEY_FILE}") from None
        if error.status() == "StatusCode.UNAVAILABLE":
            raise ServerUnreachable(f"no answer from {address}: {said}") from None
        raise from_wire(said) from None
