"""Run a command; a tiny published model, in a cache that lasts for the test session."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks import published as module
from benchmarks.published import Published, published

Main = Callable[..., list[str]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """`main("benchmarks.engine", "--rounds 1")` runs a command in this process; returns the lines of its stdout."""

    def run(module: str, arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [module, *arguments.split()])
        importlib.import_module(module).main()
        return capsys.readouterr().out.splitlines()

    return run


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
