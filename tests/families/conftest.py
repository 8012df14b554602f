"""Tiny models, one of each family, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.families.tiny_model import TinyModel

TinyModels = Callable[[str], TinyModel]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Return the tiny model of a model type; each is made once."""
    return cache(lambda model_type: TinyModel(model_type, tmp_path_factory.mktemp(model_type)))
