"""A tiny published model, in a cache that lasts for the test session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import published as module
from benchmarks.published import Published, published


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the published models out of the checkout's build folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHE", tmp_path_factory.mktemp("published"))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one torch thread: with tensors this small, more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(cache: None) -> Published:
    return published("vit-gpt2", "tiny")
