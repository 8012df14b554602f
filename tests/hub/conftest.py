"""Fixtures of the Hub: a model with one commit, and a network that can be cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import constants

from tests.support.hub_files import MODEL
from tests.support.hub_server import Hub


@pytest.fixture
def commit(hub: Hub, tiny_files: dict[str, bytes]) -> str:
    """The only commit of the model."""
    return hub.commit(MODEL, tiny_files)


@pytest.fixture(params=["unreachable", "HF_HUB_OFFLINE"])
def cut(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that cuts the network, in each of two ways."""

    def cut() -> None:
        hub.stop()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "HF_HUB_OFFLINE")

    return cut
